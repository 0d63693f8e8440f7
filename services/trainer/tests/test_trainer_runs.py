"""The life of a run: queued once, carried out step by step, kept through a restart, watched to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from gyre_core.spec.operations import RetentionSpec
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime import Invalid, NotFound, ServiceSettings, Unavailable, setup_telemetry
from gyre_trainer.adapters.store import SqliteRuns
from gyre_trainer.domain import (
    CheckOutcome,
    JobFailed,
    Pins,
    Quality,
    QualityAlert,
    Run,
    RunState,
    Task,
    TrainedCandidate,
    TrainingRefused,
    Trigger,
    version_of,
)
from gyre_trainer.handlers import RunRegistry, start_run
from gyre_trainer.maintain import Maintenance
from gyre_trainer.ports import OnProgress
from gyre_trainer.retention import plan
from gyre_trainer.runner import Runner
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TRACEPARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
CANDIDATE = TrainedCandidate(
    Path("/artifacts/shop/v"), "abc", ("popular_1d",), "0" * 64, {"ndcg_at_10": 0.5}, "mlflow-1"
)


@dataclass
class FakeWarehouse:
    """Pins snapshots that differ each time, after some failures."""

    failures: int = 0
    pinned: int = 0
    held: set[str] = field(default_factory=set)

    async def hold(self, run: Run) -> None:
        """See `Warehouse`."""
        self.held.add(run.run_id)

    async def release(self, run: Run) -> None:
        """See `Warehouse`."""
        self.held.discard(run.run_id)

    async def pin(self, loop: str) -> Pins:
        """See `Warehouse`."""
        if self.failures:
            self.failures -= 1
            raise Unavailable("KAFKA_UNAVAILABLE", "not now")
        self.pinned += 1
        return Pins({"behavior_impressions": self.pinned}, 1_373_457_600.0)


@dataclass
class FakeJob:
    """Goes through all states and ends as it is told."""

    outcome: TrainedCandidate | Exception = CANDIDATE
    tasks: list[Task] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def run(self, task: Task, on_progress: OnProgress) -> TrainedCandidate:
        """See `Job`."""
        self.tasks.append(task)
        for progress, state in enumerate(
            (RunState.SNAPSHOT, RunState.GATE, RunState.TRAINING, RunState.EVALUATING), start=1
        ):
            on_progress(state, progress / 5)
            if self.hold is not None and state is RunState.TRAINING:
                await self.hold.wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class FakeIncumbents:
    """Knows one live model."""

    async def folder(self, loop: str) -> Path | None:
        """See `Incumbents`."""
        return Path("/artifacts") / loop / "v0"


@dataclass
class FakeLayouts:
    """Says of every layout that it can be maintained, or why not."""

    said: str = ""

    async def refusal(self, spec: object) -> str:
        """See `MaintainedLayouts`."""
        return self.said


@dataclass
class FakeAnnouncer:
    """Keeps what was announced, after some failures."""

    failures: int = 0
    triggers: list[Trigger] = field(default_factory=list)
    candidates: list[tuple[Run, TrainedCandidate]] = field(default_factory=list)
    alerts: list[QualityAlert] = field(default_factory=list)

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise Unavailable("KAFKA_UNAVAILABLE", "not now")

    async def trigger(self, trigger: Trigger) -> None:
        """See `Announcer`."""
        self._fail()
        self.triggers.append(trigger)

    async def candidate(self, run: Run, candidate: TrainedCandidate) -> None:
        """See `Announcer`."""
        self._fail()
        self.candidates.append((run, candidate))

    async def alert(self, alert: QualityAlert) -> None:
        """See `Announcer`."""
        self._fail()
        self.alerts.append(alert)


@dataclass
class World:
    """A runner with its fakes, on a real store."""

    folder: Path
    spec: object
    warehouse: FakeWarehouse = field(default_factory=FakeWarehouse)
    layouts: FakeLayouts = field(default_factory=FakeLayouts)
    job: FakeJob = field(default_factory=FakeJob)
    announcer: FakeAnnouncer = field(default_factory=FakeAnnouncer)

    def __post_init__(self) -> None:
        self.store = SqliteRuns(self.folder)
        self.restart()

    def restart(self) -> None:
        """Begin again with what the file holds."""
        self.store.close()
        self.store = SqliteRuns(self.folder)
        self.runs = RunRegistry(self.store, ["shop", "news"])
        loops = {"shop": self.spec, "news": self.spec}
        self.runner = Runner(self.runs, loops, self.warehouse, self.layouts, self.job, FakeIncumbents(), self.announcer)


@pytest.fixture
def world(tmp_path: Path, spec) -> Iterator[World]:
    """A runner with its fakes."""
    made = World(tmp_path, spec)
    yield made
    made.store.close()


@pytest.fixture
async def seen(world: World) -> AsyncIterator[list[Run]]:
    """Queue a run and keep every change of it."""
    run = world.runs.queue(Trigger("t1", "shop", TRACEPARENT))
    changes: list[Run] = []

    async def watch() -> None:
        changes.extend([each async for each in world.runs.watch(run.run_id)])

    task = asyncio.create_task(watch())
    await asyncio.sleep(0)
    yield changes
    async with asyncio.timeout(scaled(5)):
        await task


async def test_a_run_goes_through_every_state(world: World, seen: list[Run]) -> None:
    """A watcher sees each state in order; the candidate is announced once, with what was measured and pinned."""
    due = world.runs.next_due()
    assert due is not None
    ended = await world.runner.carry_out(due)
    await asyncio.sleep(0)
    states = list(dict.fromkeys(run.state for run in seen))
    assert states == [
        RunState.QUEUED,
        RunState.SNAPSHOT,
        RunState.GATE,
        RunState.TRAINING,
        RunState.EVALUATING,
        RunState.REGISTERED,
    ]
    assert ended == world.runs.get(ended.run_id)
    assert (ended.measurements, ended.mlflow_run_id, ended.progress) == ({"ndcg_at_10": 0.5}, "mlflow-1", 1.0)
    ((announced, candidate),) = world.announcer.candidates
    assert candidate is CANDIDATE
    assert (announced.version, announced.pins) == (ended.version, Pins({"behavior_impressions": 1}, 1_373_457_600.0))
    assert world.job.tasks[0].incumbent == "/artifacts/shop/v0"
    assert world.runs.next_due() is None


async def test_the_incumbent_of_a_run_under_way_stays_whatever_is_promoted(world: World, tmp_path: Path) -> None:
    """A model that a run is compared with is removed only after the run, though others have been promoted since."""
    folder = tmp_path / "artifacts" / "shop"
    for version in ("v0", "v1", "v2"):
        (folder / version).mkdir(parents=True)
        world.store.save(Run(f"run-{version}", "shop", version, "", RunState.REGISTERED, 1.0, 1.0, version=version))
    maintenance = Maintenance("shop", world.store, folder, lambda _loop, _run_id: True)

    def maintain() -> list[str]:
        decided = plan(maintenance.stored(), {"v1", "v2"}, RetentionSpec(min_models=0), now=time.time())
        maintenance.carry_out(decided)
        return sorted(each.name for each in folder.iterdir())

    world.job.hold = asyncio.Event()
    running = asyncio.create_task(world.runner.carry_out(world.runs.queue(Trigger("t9", "shop"))))
    await eventually(lambda: bool(world.job.tasks), timeout_s=10, message="the run is under way")
    assert world.job.tasks[0].incumbent == "/artifacts/shop/v0"
    stayed = maintain()
    world.job.hold.set()
    await running
    assert stayed == ["v0", "v1", "v2"]
    assert maintain() == ["v1", "v2"]


@pytest.mark.parametrize(
    ("outcome", "state", "reason"),
    [
        (
            TrainingRefused("training.gate.min_impressions: 3: must be at least 20"),
            RunState.REFUSED,
            "must be at least 20",
        ),
        (JobFailed("the job ended with code -9"), RunState.FAILED, "code -9"),
        (RuntimeError("u17 did this"), RunState.FAILED, "RuntimeError at gyre_trainer.runner:"),
    ],
)
async def test_what_does_not_pass_is_not_announced(
    world: World, outcome: Exception, state: RunState, reason: str
) -> None:
    """A refused or failed run says why and announces nothing; of an unexpected error it tells class and place alone."""
    world.job.outcome = outcome
    ended = await world.runner.carry_out(world.runs.queue(Trigger("t1", "shop")))
    assert ended.state is state
    assert reason in ended.reason
    assert "u17" not in ended.reason
    assert world.announcer.candidates == []
    assert world.runs.next_due() is None


async def test_a_layout_that_is_refused_is_not_trained_on(world: World) -> None:
    """Nothing is read for a layout that the mesh cannot maintain; once it can, the next run is carried out."""
    world.layouts.said = "KIND_CHANGED: items.fields.price: a field's kind cannot change in place"
    ended = await world.runner.carry_out(world.runs.queue(Trigger("t1", "shop")))
    assert (ended.state, ended.reason, ended.pins) == (RunState.REFUSED, world.layouts.said, None)
    assert world.job.tasks == []
    world.layouts.said = ""
    ended = await world.runner.carry_out(world.runs.queue(Trigger("t2", "shop")))
    assert ended.state is RunState.REGISTERED


def _found(*, psi: bool = True, bots: bool | None = None) -> Quality:
    """What a gate found: whether the checks passed, None for one that was not made."""
    made = [("drift.psi", psi, "block"), *([] if bots is None else [("bots", bots, "warn")])]
    checks = [CheckOutcome(name, 0.5, 0.1, passed, action, f"{name} = 0.5") for name, passed, action in made]
    return Quality(tuple(checks), {"interactions": 3})


async def test_alerts_fire_and_resolve(world: World) -> None:
    """A failed check fires with one id and start until a run passes it; one that a run could not make keeps firing."""
    world.job.outcome = TrainingRefused("quality: drift.psi", _found(psi=False, bots=False))
    first = await world.runner.carry_out(world.runs.queue(Trigger("t1", "shop")))
    assert first.measurements == {"quality_checks": 2, "quality_failed": 2, "quality_quarantined_rows": 3}
    fired = {alert.outcome.name: alert for alert in world.announcer.alerts}
    assert fired.keys() == {"drift.psi", "bots"}
    assert all(alert.end_time is None for alert in fired.values())

    world.announcer.alerts.clear()
    world.restart()
    world.job.outcome = JobFailed("the job ended with code -9")
    await world.runner.carry_out(world.runs.queue(Trigger("t2", "shop")))
    assert world.announcer.alerts == []
    world.announcer.failures = 1
    world.job.outcome = replace(CANDIDATE, quality=_found())
    third = await world.runner.carry_out(world.runs.queue(Trigger("t3", "shop")))
    (resolved,) = world.announcer.alerts
    assert resolved.alert_id == fired["drift.psi"].alert_id
    assert resolved.start_time == fired["drift.psi"].start_time
    assert resolved.end_time is not None
    assert third.alerting == {"bots": fired["bots"].start_time}


async def test_alerts_are_of_a_loop(world: World) -> None:
    """What fires in one loop neither fires nor resolves in another, and without checks nothing is said."""
    world.job.outcome = TrainingRefused("quality: drift.psi", _found(psi=False))
    await world.runner.carry_out(world.runs.queue(Trigger("t1", "shop")))
    world.job.outcome = replace(CANDIDATE, quality=_found())
    other = await world.runner.carry_out(world.runs.queue(Trigger("t1", "news")))
    assert other.alerting == {}
    world.job.outcome = CANDIDATE
    unchecked = await world.runner.carry_out(world.runs.queue(Trigger("t2", "news")))
    assert unchecked.alerting is None
    assert [alert.loop for alert in world.announcer.alerts] == ["shop"]


async def test_what_is_away_is_waited_for(world: World) -> None:
    """A warehouse and a Kafka that do not answer at first delay a run, and do not fail it."""
    world.warehouse.failures, world.announcer.failures = 1, 1
    ended = await world.runner.carry_out(world.runs.queue(Trigger("t1", "shop")))
    assert ended.state is RunState.REGISTERED
    assert len(world.announcer.candidates) == 1


async def test_a_run_begins_anew_with_the_same_pins(world: World) -> None:
    """A run that was cut off is due again before those that wait, and reads and makes the same as before."""
    world.runs.queue(Trigger("t1", "shop"))
    world.runs.queue(Trigger("t2", "shop"))
    world.job.hold = asyncio.Event()
    working = asyncio.create_task(world.runner.run_forever())
    await eventually(lambda: world.job.tasks, timeout_s=5)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    world.job.hold = None
    world.restart()
    due = world.runs.next_due()
    assert due is not None
    assert (due.trigger_id, due.state) == ("t1", RunState.TRAINING)
    ended = await world.runner.carry_out(due)
    first, second = world.job.tasks
    assert first == second
    assert ended.version == first.version
    assert world.warehouse.pinned == 1
    following = world.runs.next_due()
    assert following is not None
    assert (following.trigger_id, following.state) == ("t2", RunState.QUEUED)


async def test_the_runner_wakes_for_a_new_run(world: World) -> None:
    """A runner that has nothing to do takes up a run as soon as it is queued, one after the other."""
    working = asyncio.create_task(world.runner.run_forever())
    await asyncio.sleep(0)
    for number in range(3):
        world.runs.queue(Trigger(f"t{number}", "shop"))
    await eventually(lambda: len(world.announcer.candidates) == 3, timeout_s=5)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert [run.trigger_id for run, _ in world.announcer.candidates] == ["t0", "t1", "t2"]


def test_a_trigger_starts_one_run(world: World) -> None:
    """A trigger that comes again, even after a restart, gives the run that it started; other loops have their own."""
    first = world.runs.queue(Trigger("t1", "shop"))
    world.restart()
    assert world.runs.queue(Trigger("t1", "shop", TRACEPARENT)) == first
    other = world.runs.queue(Trigger("t1", "news"))
    assert other.run_id != first.run_id
    assert world.runs.newest("shop", 10) == [first]


def test_runs_are_listed_newest_first(world: World) -> None:
    """No more than the limit, the newest first."""
    queued = [world.runs.queue(Trigger(f"t{number}", "shop")) for number in range(5)]
    assert world.runs.newest("shop", 3) == [queued[4], queued[3], queued[2]]
    with pytest.raises(NotFound):
        world.runs.newest("elsewhere", 3)


def test_a_trigger_of_an_unknown_loop_is_refused(world: World) -> None:
    """The error names the field, the value and the loops that there are."""
    with pytest.raises(Invalid, match="loop = 'elsewhere': must be one of shop, news"):
        world.runs.queue(Trigger("t1", "elsewhere"))


async def test_a_start_that_kafka_does_not_take_starts_nothing(world: World) -> None:
    """The caller is told, nothing is queued, and the same request may come again."""
    world.announcer.failures = 1
    with pytest.raises(Unavailable):
        await start_run(world.runs, world.announcer, "shop", "q1")
    assert world.runs.next_due() is None
    run = await start_run(world.runs, world.announcer, "shop", "q1")
    assert world.runs.next_due() == run
    assert [each.trigger_id for each in world.announcer.triggers] == [run.trigger_id]
    assert await start_run(world.runs, world.announcer, "shop", "q1") == run
    assert len(world.announcer.triggers) == 1


async def test_a_run_can_be_watched_after_its_end(world: World) -> None:
    """A watcher that comes late gets the end at once; several watchers each get every change."""
    run = world.runs.queue(Trigger("t1", "shop"))
    watchers = [asyncio.create_task(_all(world.runs, run.run_id)) for _ in range(2)]
    await asyncio.sleep(0)
    ended = await world.runner.carry_out(run)
    async with asyncio.timeout(scaled(5)):
        first, second = await asyncio.gather(*watchers)
    assert first == second
    assert await _all(world.runs, run.run_id) == [ended]


async def _all(runs: RunRegistry, run_id: str) -> list[Run]:
    return [each async for each in runs.watch(run_id)]


def test_versions_tell_the_time_of_the_data_and_differ() -> None:
    """A version begins with the loop's time, matches the proto's pattern, and differs between runs of one second."""
    first, second = version_of("run-1", 1_373_457_600.0), version_of("run-2", 1_373_457_600.0)
    assert first.startswith("20130710-120000-")
    assert first != second
    assert len(first) == 22


def test_a_run_is_kept_as_it_is(tmp_path: Path) -> None:
    """Every field survives the file."""
    run = replace(
        Run.queued(Trigger("t1", "shop", TRACEPARENT), now=12.5).pinned(Pins({"catalog_items": 2**62}, 1.5)),
        state=RunState.REGISTERED,
        progress=1.0,
        reason="why",
        measurements={"ndcg_at_10": 0.25},
        mlflow_run_id="m1",
    )
    with closing(SqliteRuns(tmp_path)) as store:
        store.save(run)
    with closing(SqliteRuns(tmp_path)) as store:
        assert store.get(run.run_id) == run


async def test_the_spans_of_a_run(world: World) -> None:
    """The training run links its trigger, each step is its child, and the step under way carries the failure."""
    exporter = InMemorySpanExporter()
    provider = setup_telemetry("trainer", ServiceSettings(metrics_listen="")).tracer_provider
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    await world.runner.carry_out(world.runs.queue(Trigger("t1", "shop", TRACEPARENT)))
    *steps, run = exporter.get_finished_spans()
    assert [step.name for step in steps] == ["snapshot", "gate", "train", "evaluate", "register"]
    assert {step.parent.span_id for step in steps} == {run.context.span_id}
    assert run.name == "training run"
    assert f"{run.links[0].context.trace_id:032x}" == "ab" * 16
    assert run.attributes["gyre.trigger_id"] == "t1"
    exporter.clear()
    world.job.outcome = JobFailed("the job ended with code -9")
    await world.runner.carry_out(world.runs.queue(Trigger("t2", "shop")))
    *_, last, run = exporter.get_finished_spans()
    assert last.name == "evaluate"
    assert not last.status.is_ok
    assert run.attributes["gyre.state"] == "FAILED"
