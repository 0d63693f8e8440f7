"""The commands that operate a loop, against real servers that answer as told: what they ask for and what they print."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from gyre.deployer.v1 import deployer_pb2 as deployer
from gyre.deployer.v1 import deployer_pb2_grpc as deployer_rpc
from gyre.events.v1 import features_pb2 as features
from gyre.monitor.v1 import monitor_pb2 as monitor
from gyre.monitor.v1 import monitor_pb2_grpc as monitor_rpc
from gyre.trainer.v1 import trainer_pb2 as trainer
from gyre.trainer.v1 import trainer_pb2_grpc as trainer_rpc
from gyre_runtime import Health, NotFound, Precondition, Registration, ServiceSettings, build_server
from typer.testing import Result


class ToldMesh(
    deployer_rpc.DeployerServiceServicer, monitor_rpc.MonitorServiceServicer, trainer_rpc.TrainerServiceServicer
):
    """Deployer, monitor and trainer in one, with one run and two rollouts."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.run_states = [trainer.RUN_STATE_TRAINING, trainer.RUN_STATE_REGISTERED]
        self.rollouts = [
            deployer.Rollout(rollout_id="new", version="v2", state=deployer.ROLLOUT_STATE_CANARY, share=0.1),
            deployer.Rollout(rollout_id="old", version="v1", state=deployer.ROLLOUT_STATE_PROMOTED, share=1.0),
        ]

    async def GetLoopStatus(self, request: Any, context: Any) -> monitor.GetLoopStatusResponse:  # noqa: N802
        """Two stages, and what is left to the next run."""
        stages = [monitor.StageStatus(stage="events", state="idle", count=1234), monitor.StageStatus(stage="rollout")]
        layouts = [
            features.FeatureLayout(
                layout="new", state=features.LAYOUT_STATE_FILLING, filled_events=370, total_events=1000,
                wanted_by=["gyre.yaml"],
            ),
            features.FeatureLayout(layout="old", state=features.LAYOUT_STATE_READY, wanted_by=["live v1"]),
        ]  # fmt: skip
        clock = monitor.StalledClock(topic="shop.behavior.interactions", partition=3, refused=1200)
        clock.clock_time.FromSeconds(1_365_000_000)
        clock.next_time.FromSeconds(1_365_432_000)
        refused = monitor.RefusedEvents(topic="shop.behavior.interactions", reason="TOO_OLD", count=4634)
        refused.last_time.FromSeconds(1_365_432_000)
        early = monitor.RefusedEvents(topic="shop.behavior.interactions", reason="IN_THE_FUTURE", count=3)
        ahead = monitor.StalledClock(topic="shop.behavior.impressions", partition=1, refused=3000)
        ahead.clock_time.FromSeconds(1_577_836_800)
        ahead.next_time.FromSeconds(1_365_000_000)
        return monitor.GetLoopStatusResponse(
            stages=stages, interactions_since_trigger=7, volume_threshold=100, loop_time_s=12.5, layouts=layouts,
            stalled_clocks=[clock, ahead], refused_events=[early, refused],
        )  # fmt: skip

    async def GetExperiment(self, request: Any, context: Any) -> monitor.GetExperimentResponse:  # noqa: N802
        """One arm of the rollout that is asked for."""
        self.asked.append(request)
        return monitor.GetExperimentResponse(
            arms=[monitor.ArmMetrics(arm="live", version="v1", impressions=9, ctr=0.5)]
        )

    async def GetLineage(self, request: Any, context: Any) -> monitor.GetLineageResponse:  # noqa: N802
        """Know one answer only."""
        if request.request_id != "r1":
            raise NotFound("UNKNOWN_REQUEST", f"{request.request_id} is not known")
        return monitor.GetLineageResponse(lineage=monitor.Lineage(request_id="r1", run_id="run-1"))

    def _run(self, state: int) -> trainer.Run:
        return trainer.Run(run_id="run-1", state=state, version="v2", reason="why", progress=0.5)  # type: ignore[arg-type]

    async def ListRuns(self, request: Any, context: Any) -> trainer.ListRunsResponse:  # noqa: N802
        """One run with its measure."""
        run = self._run(self.run_states[-1])
        run.measurements.add(name="ndcg_at_10", value=0.51234)
        run.erased_time.FromSeconds(1_700_000_000)
        return trainer.ListRunsResponse(runs=[run])

    async def StartRun(self, request: Any, context: Any) -> trainer.StartRunResponse:  # noqa: N802
        """Queue the run."""
        self.asked.append(request)
        return trainer.StartRunResponse(run=self._run(trainer.RUN_STATE_QUEUED))

    async def WatchRun(self, request: Any, context: Any) -> AsyncIterator[trainer.WatchRunResponse]:  # noqa: N802
        """Each state once."""
        for state in self.run_states:
            yield trainer.WatchRunResponse(run=self._run(state))

    async def ListRollouts(self, request: Any, context: Any) -> deployer.ListRolloutsResponse:  # noqa: N802
        """The rollouts, and the arms as they are."""
        answer = deployer.ListRolloutsResponse(rollouts=self.rollouts)
        answer.view.epoch = 5
        answer.view.arms.add(name="live", version="v1", share=0.9)
        answer.view.arms.add(name="candidate", version="v2", share=0.1)
        return answer

    async def StartRollout(self, request: Any, context: Any) -> deployer.StartRolloutResponse:  # noqa: N802
        """Start a rollout."""
        self.asked.append(request)
        return deployer.StartRolloutResponse(rollout=deployer.Rollout(rollout_id="again", version=request.version))

    async def Promote(self, request: Any, context: Any) -> deployer.PromoteResponse:  # noqa: N802
        """Promote what is under way."""
        self.asked.append(request)
        if request.rollout_id == "old":
            raise Precondition("ROLLOUT_ENDED", "rollout old is PROMOTED: must be under way")
        return deployer.PromoteResponse(rollout=deployer.Rollout(rollout_id=request.rollout_id, version="v2"))

    async def Rollback(self, request: Any, context: Any) -> deployer.RollbackResponse:  # noqa: N802
        """Roll back."""
        self.asked.append(request)
        return deployer.RollbackResponse(rollout=deployer.Rollout(rollout_id=request.rollout_id))

    async def Pause(self, request: Any, context: Any) -> deployer.PauseResponse:  # noqa: N802
        """Hold or go on."""
        self.asked.append(request)
        return deployer.PauseResponse(rollout=deployer.Rollout(rollout_id=request.rollout_id))


@pytest.fixture
def told() -> ToldMesh:
    """The services that the test instructs."""
    return ToldMesh()


@pytest.fixture
async def run(told: ToldMesh, gyre: Callable[..., Result]) -> AsyncIterator[Callable[..., Any]]:
    """Run a command against the told services."""
    services = [
        Registration(deployer_rpc.add_DeployerServiceServicer_to_server, told),
        Registration(monitor_rpc.add_MonitorServiceServicer_to_server, told),
        Registration(trainer_rpc.add_TrainerServiceServicer_to_server, told),
    ]
    async with build_server(ServiceSettings(drain_s=1), services, health=Health()) as server:
        address = server.address

        async def command(*words: str) -> Result:
            return await asyncio.to_thread(gyre, *words, deployer=address, monitor=address, trainer=address)

        yield command


async def test_status_shows_stages_and_what_is_left(run: Callable[..., Any]) -> None:
    """`gyre status` prints each stage and how far the next run is."""
    output = (await run("status", "shop")).output
    assert "1,234" in output
    assert "7 of 100 interactions to the next run" in output
    assert "after 12.5 s" in output
    rows = [" ".join(line.split()) for line in output.splitlines()]
    assert any(row.startswith("new filling 37 % (370 of 1,000 events) gyre.yaml") for row in rows)
    assert any(row.startswith("old ready 100 % live v1") for row in rows)
    said = " ".join(output.split())
    assert "shop.behavior.interactions, partition 3: the clock stands at 2013-04-03 14:40:00" in said
    assert "the last 1,200 events are further ahead" in said
    assert "`gyre clock shop --to 1365432000` lets them in again" in said
    assert "shop.behavior.interactions: 4,634 events refused as TOO_OLD since the monitor started, the last at" in said
    assert "where that gap is true, `gyre clock LOOP --to T` crosses it" in said
    assert "On the replay clock they are behind the newest event of their partition" in said
    assert "send events in the order of their times" in said
    assert "`gyre clock LOOP --to T --back` sets it back" in said
    assert "`gyre dlq replay shop` puts them back" in said
    assert "shop.behavior.impressions, partition 1: the clock stands at 2020-01-01 00:00:00" in said
    assert "the last 3,000 events are too old beside it, the earliest at 2013-04-03 14:40:00" in said
    assert "`gyre clock shop --to 1365000000 --back` lets them in again" in said


async def test_experiment_asks_for_one_rollout(run: Callable[..., Any], told: ToldMesh) -> None:
    """`gyre experiment --rollout` narrows the question, and rates are percentages."""
    output = (await run("experiment", "shop", "--rollout", "new")).output
    assert told.asked[0].rollout_id == "new"
    assert "50.00%" in output


async def test_trace_of_an_unknown_answer_is_one_line(run: Callable[..., Any]) -> None:
    """`gyre trace` prints a known answer's ids, and an error for another."""
    assert "run-1" in (await run("trace", "shop", "r1")).output
    unknown = await run("trace", "shop", "r2")
    assert (unknown.exit_code, unknown.output.strip()) == (1, "UNKNOWN_REQUEST: r2 is not known")


async def test_runs_show_state_and_measure(run: Callable[..., Any]) -> None:
    """`gyre runs` names state, version and NDCG, and says of a run that rows which it used were erased."""
    output = (await run("runs", "shop")).output
    assert "registered" in output
    assert "0.5123" in output
    assert "rows erased" in " ".join(output.split())


async def test_train_follows_the_run_to_its_end(run: Callable[..., Any], told: ToldMesh) -> None:
    """`gyre train --watch` prints each state; a run that ends badly ends the command with 1 and its reason."""
    good = await run("train", "shop", "--watch")
    assert good.exit_code == 0
    assert good.output.splitlines()[:3] == ["run run-1", "training 50% v2 why", "registered 50% v2 why"]
    told.run_states = [trainer.RUN_STATE_GATE, trainer.RUN_STATE_REFUSED]
    bad = await run("train", "shop", "--watch")
    assert bad.exit_code == 1
    assert "run run-1 was refused: why" in bad.output
    assert len({each.request_id for each in told.asked}) == 2


async def test_rollouts_show_who_gets_what(run: Callable[..., Any]) -> None:
    """`gyre rollouts` lists them and the arms of now."""
    output = (await run("rollouts", "shop")).output
    assert "now: live v1 90%, candidate v2 10% (epoch 5)" in output
    assert output.index("new") < output.index("old")


@pytest.mark.parametrize("command", ["promote", "rollback", "pause"])
async def test_a_change_is_for_the_newest_rollout_unless_one_is_named(
    run: Callable[..., Any], told: ToldMesh, command: str
) -> None:
    """Without a rollout the newest is meant, and the reason reaches the log."""
    assert (await run(command, "shop", "--reason", "because")).exit_code == 0
    await run(command, "shop", "old")
    assert [(each.rollout_id, each.reason) for each in told.asked] == [("new", "because"), ("old", "")]


async def test_a_candidate_can_be_offered_again(run: Callable[..., Any], told: ToldMesh) -> None:
    """`gyre offer` starts the rollout of the version that is named, by a request of its own each time."""
    for _ in range(2):
        assert "again" in (await run("offer", "shop", "v2")).output
    assert [(each.loop, each.version) for each in told.asked] == [("shop", "v2")] * 2
    assert len({each.request_id for each in told.asked}) == 2


async def test_pause_can_resume(run: Callable[..., Any], told: ToldMesh) -> None:
    """`--resume` lets the rollout go on."""
    await run("pause", "shop")
    await run("pause", "shop", "--resume")
    assert [each.resume for each in told.asked] == [False, True]


async def test_a_refused_change_is_one_line(run: Callable[..., Any]) -> None:
    """What the deployer refuses is told as it says it, with exit code 1."""
    result = await run("promote", "shop", "old")
    assert (result.exit_code, result.output.strip()) == (1, "ROLLOUT_ENDED: rollout old is PROMOTED: must be under way")


async def test_without_any_rollout_there_is_nothing_to_change(run: Callable[..., Any], told: ToldMesh) -> None:
    """A loop that had no rollout yet says so."""
    told.rollouts = []
    result = await run("rollback", "shop")
    assert result.exit_code == 1
    assert "has had no rollout yet" in result.output
