"""One turn of the loop, stage by stage, against a running mesh; every stage records what really happened."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from gyre.deployer.v1 import deployer_pb2 as deployer
from gyre.events.v1 import models_pb2 as models
from gyre.features.v1 import parity_pb2 as features
from gyre.monitor.v1 import monitor_pb2 as monitor
from gyre.trainer.v1 import trainer_pb2 as trainer
from gyre_client import ClientSettings, GyreError, Mesh, NotFound, call, import_history
from gyre_client.cli.features import reports_of, summary
from gyre_client.cli.models import word
from gyre_core.features import Event
from gyre_core.spec import LoopSpec, load_loop
from gyre_core.topics import topic
from gyre_runtime.events import message_types
from gyre_runtime.kafka import read_log
from rich.progress import Progress

from demo_loop.baseline import DecayedPopularity
from demo_loop.scenario import Scenario
from demo_loop.traffic import Traffic
from demo_loop.waiting import TIMEOUT_S, Backlog, NotInTime, rollout_ended, run_ended, until

SETTLED = 200
"""How many answers of the new live model a demo waits for, so that its table shows it at work."""
_PATIENCE_S = 600.0
_SPREAD_S = 240.0
"""Over about this time the traffic beyond enough is spread while a model is trained: its canary needs some, too."""
_LINEAGE_S = 30.0
_CHECKED = 10_000
_CHECK_S = 300.0
_MOST_UNKNOWN = 0.05
Find = Callable[[list[trainer.Run]], trainer.Run | None]
LINKED = ("training trigger", "training run", "rollout")


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage was to do, whether it happened, and the fact that shows it."""

    name: str
    happened: bool
    fact: str


@dataclass
class Turn:
    """The stages of a demo in their order, and what they found."""

    scenario: Scenario
    mesh: Mesh
    progress: Progress
    stages: list[Stage] = field(default_factory=list)
    first: str = ""
    second: str = ""
    live_s: float = 0.0
    status: monitor.GetLoopStatusResponse = field(default_factory=monitor.GetLoopStatusResponse)
    lineage: monitor.GetLineageResponse | None = None
    parity: features.ParityReport | None = None

    def __post_init__(self) -> None:
        self.spec: LoopSpec = load_loop(self.scenario.spec_file)
        self.loop = self.spec.loop
        self.settings: ClientSettings = self.mesh.settings
        popularity = DecayedPopularity(self.scenario.baseline_half_life.seconds)
        popularity.add(self.scenario.history)
        self.traffic = Traffic(self.mesh.gateway, self.loop, popularity)
        self._runs: set[str] = set()

    async def go(self) -> None:
        """All stages; the first that does not happen ends the turn."""
        for stage in (self._history, self._first_model, self._live, self._status, self._lineage, self._parity):
            try:
                await stage()
            except (NotInTime, GyreError) as error:
                self._note(stage.__name__.strip("_").replace("_", " "), happened=False, fact=str(error))
                return

    def _note(self, name: str, *, happened: bool, fact: str) -> None:
        self.stages.append(Stage(name, happened, fact))

    async def _history(self) -> None:
        """Items first, so that every affinity counts; then behaviour; both taken in before the next stage."""
        backlog = Backlog(self.settings, self.spec)
        sent = await self._import("catalogue", self.scenario.items)
        await self._taken_in("features know the catalogue", backlog.of_features)
        behaviour: list[Event] = [*self.scenario.history, *self.scenario.shown]
        sent += await self._import("history", sorted(behaviour, key=lambda each: each.time))
        await self._taken_in("features know the history", backlog.of_features)
        await self._taken_in("the warehouse holds it", backlog.of_warehouse)
        self._note("history imported", happened=True, fact=f"{sent:,} events in Kafka, features and warehouse")

    async def _import(self, what: str, events: Sequence[Event]) -> int:
        task = self.progress.add_task(f"import: {what}", total=len(events))
        imported = await import_history(
            self.settings, self.spec, events, on_progress=lambda count: self.progress.advance(task, count)
        )
        return sum(imported)

    async def _taken_in(self, what: str, left: Callable[[], Awaitable[int]]) -> None:
        task = self.progress.add_task(what, total=None)
        most = 0

        async def look() -> bool | None:
            nonlocal most
            count = await left()
            most = max(most, count)
            self.progress.update(task, total=max(most, 1), completed=max(most, 1) - count)
            return True if count == 0 else None

        await until(look, what=what, timeout_s=_PATIENCE_S)

    async def _first_model(self) -> None:
        request = trainer.StartRunRequest(loop=self.loop, request_id=f"demo-{uuid.uuid4().hex[:12]}")
        started = (await call(self.mesh.trainer.StartRun, request, timeout_s=TIMEOUT_S)).run
        run = await self._run_ended("first run", lambda runs: _by_id(runs, started.run_id))
        self.first = run.version
        self._runs.add(run.run_id)
        self._note("first model trained", happened=True, fact=_run_fact(run))
        rollout = await self._rollout_ended("first rollout", run.version)
        self._note("first model live", happened=True, fact=f"{rollout.version}, epoch {rollout.epoch}")

    async def _run_ended(self, what: str, find: Find) -> trainer.Run:
        task = self.progress.add_task(f"{what}: waiting", total=1.0)

        def note(run: trainer.Run) -> None:
            state = word(trainer.RunState, run.state)
            self.progress.update(task, description=f"{what}: {state}", completed=run.progress)

        run = await until(
            lambda: run_ended(self.mesh, self.loop, find, note=note), what=f"the {what}", timeout_s=_PATIENCE_S
        )
        if run.state != trainer.RUN_STATE_REGISTERED:
            raise NotInTime(f"the {what} {run.run_id} was {word(trainer.RunState, run.state)}: {run.reason}")
        self.progress.update(task, completed=1.0)
        return run

    async def _rollout_ended(self, what: str, version: str) -> deployer.Rollout:
        task = self.progress.add_task(f"{what}: waiting", total=1.0)

        def note(rollout: deployer.Rollout) -> None:
            state = word(deployer.RolloutState, rollout.state)
            self.progress.update(task, description=f"{what}: {state} {rollout.share:.0%}", completed=rollout.share)

        rollout = await until(
            lambda: rollout_ended(self.mesh, self.loop, version, note=note), what=f"the {what}", timeout_s=_PATIENCE_S
        )
        if rollout.state != deployer.ROLLOUT_STATE_PROMOTED:
            state = word(deployer.RolloutState, rollout.state)
            raise NotInTime(f"the {what} of {version} was {state}: {rollout.reason}")
        self.progress.update(task, completed=1.0)
        return rollout

    async def _live(self) -> None:
        """Traffic until the model that it triggers is live for a while, and at least as long as the scenario wants."""
        task = self.progress.add_task("live: requests", total=self.scenario.enough)
        retrain = asyncio.create_task(self._second_model())
        began = asyncio.get_running_loop().time()

        def done() -> bool:
            answers = self.traffic.answers
            self.progress.update(task, total=max(self.scenario.enough, len(answers)), completed=len(answers))
            if retrain.done() and retrain.exception() is not None:
                return True
            return retrain.done() and len(answers) >= self.scenario.enough and self._settled() >= SETTLED

        def pause_s(left: int) -> float:
            is_ahead = len(self.traffic.answers) >= self.scenario.enough and not self.second
            return _SPREAD_S / left if is_ahead else 0.0

        await self.traffic.replay(self.scenario.live, done=done, pause_s=pause_s)
        self.live_s = asyncio.get_running_loop().time() - began
        self._note_traffic()
        if not retrain.done():
            retrain.cancel()
            await asyncio.gather(retrain, return_exceptions=True)
            raise NotInTime("all choices were replayed before the retrained model was live")
        await retrain

    def _settled(self) -> int:
        return sum(each.version == self.second and each.arm == "live" for each in self.traffic.answers)

    def _note_traffic(self) -> None:
        answers, failures = self.traffic.answers, self.traffic.failures
        enough = len(answers) >= self.scenario.enough
        self._note("requests answered", happened=enough, fact=f"{len(answers):,} of at least {self.scenario.enough:,}")
        fact = "none" if not failures else f"{len(failures)}, such as {failures[0]}"
        self._note("no request failed", happened=not failures, fact=fact)

    async def _second_model(self) -> None:
        """The run that the volume of the live events triggers, its canary and its promotion."""
        run = await self._run_ended("retrain", lambda runs: _not_in(runs, self._runs))
        self.second = run.version
        reason = await self._reason_of(run.trigger_id)
        self._note(
            "retrain by the volume trigger", happened=reason == models.TRIGGER_REASON_VOLUME, fact=_run_fact(run)
        )
        rollout = await self._rollout_ended("canary", run.version)
        shares = [each.share for each in rollout.events if each.kind == models.ROLLOUT_EVENT_KIND_SHIFTED]
        wanted = [step.share for step in self.spec.rollout.steps]
        steps = " → ".join(f"{share:.0%}" for share in shares)
        canary = [each for each in self.traffic.answers if each.version == run.version and each.arm == "candidate"]
        happened = [share for share in shares if share in wanted] == wanted and bool(canary)
        self._note(
            "canary beside the live model", happened=happened, fact=f"{steps}, {len(canary):,} answers as candidate"
        )
        self._note("retrained model promoted", happened=True, fact=f"{rollout.version}, epoch {rollout.epoch}")

    async def _reason_of(self, trigger_id: str) -> int:
        types = message_types(models.TrainingTrigger)
        async for event in read_log(self.settings.kafka, topic(self.loop, "training.triggers"), types):
            if event.message.trigger_id == trigger_id:
                return int(event.message.reason)
        return models.TRIGGER_REASON_UNSPECIFIED

    async def _status(self) -> None:
        request = monitor.GetLoopStatusRequest(loop=self.loop)
        self.status = await call(self.mesh.monitor.GetLoopStatus, request, timeout_s=TIMEOUT_S)
        seconds = self.status.loop_time_s
        self._note("loop time known", happened=seconds > 0, fact=f"{seconds:.1f} s from trigger to all traffic")

    async def _lineage(self) -> None:
        """The newest sampled answer of the retrained model, with its trace and all that it links to."""
        sampled = [each for each in self.traffic.answers if each.sampled and each.version == self.second]
        if not sampled:
            raise NotInTime("no answer of the retrained model has a trace")
        asked = monitor.GetLineageRequest(loop=self.loop, request_id=sampled[-1].request_id)

        async def look() -> monitor.GetLineageResponse | None:
            try:
                answer = await call(self.mesh.monitor.GetLineage, asked, timeout_s=TIMEOUT_S)
            except NotFound:
                return None
            self.lineage = answer
            return answer if not missing_from(answer) else None

        try:
            await until(look, what="a whole lineage", timeout_s=_LINEAGE_S)
        except NotInTime as error:
            missing = ", ".join(missing_from(self.lineage)) if self.lineage else "everything"
            raise NotInTime(f"{error}: {missing} missing") from error
        services = {span.service for span in self.lineage.spans} if self.lineage else set()
        self._note("lineage from answer to trigger", happened=True, fact=f"over {', '.join(sorted(services))}")

    async def _parity(self) -> None:
        """The live answers' features, as far as the warehouse holds them, against a replay of it."""
        task = self.progress.add_task("parity: replay of the warehouse", total=None)
        request = features.CheckParityRequest(loop=self.loop, impressions=_CHECKED)

        async def look() -> features.ParityReport | None:
            answer = await call(self.mesh.parity.CheckParity, request, timeout_s=_PATIENCE_S, attempts=1)
            self.parity = reports_of(answer)[0]
            return self.parity if self.parity.impressions and not self.parity.pending else None

        found = await until(look, what="a whole check", timeout_s=_CHECK_S)
        self.progress.update(task, total=1, completed=1)
        unknown = sum(found.unknown.values())
        happened = not found.mismatches and unknown <= _MOST_UNKNOWN * (unknown + found.impressions)
        self._note("served is what a replay gives", happened=happened, fact=summary(found).removeprefix("parity: "))


def missing_from(answer: monitor.GetLineageResponse) -> list[str]:
    """What a whole lineage of a retrained model's answer has and this one has not."""
    names = Counter(span.name for span in answer.spans)
    missing = [name for name in LINKED if not names[name]]
    if not any(span.service == "features-stream" for span in answer.spans):
        missing.append("the event in the stream")
    if not any(name.endswith("Rank") for name in names):
        missing.append("the request")
    ids = ("model_version", "rollout_id", "run_id", "trigger_id")
    return missing + [name for name in ids if not getattr(answer.lineage, name)]


def _by_id(runs: Sequence[trainer.Run], run_id: str) -> trainer.Run | None:
    return next((run for run in runs if run.run_id == run_id), None)


def _not_in(runs: Sequence[trainer.Run], known: set[str]) -> trainer.Run | None:
    """The oldest run that is not known yet."""
    return next((run for run in reversed(runs) if run.run_id not in known), None)


def _run_fact(run: trainer.Run) -> str:
    measured = {each.name: each.value for each in run.measurements}
    offline = f", NDCG@10 {measured['ndcg_at_10']:.4f} on its holdout" if "ndcg_at_10" in measured else ""
    return f"{run.version}{offline}"
