"""The steps of a rollout on hand-written fakes: a crash or an outage at every single call loses and repeats nothing."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from gyre.events.v1.models_pb2 import RolloutView
from gyre_core.features import Layout
from gyre_core.models import split_model
from gyre_core.spec import LoopSpec
from gyre_deployer.domain.alerts import Alert
from gyre_deployer.domain.loading import LoadRecord
from gyre_deployer.domain.observation import Counts, Report
from gyre_deployer.domain.rollouts import Candidate, Change, Kind, LoopState, State, apply
from gyre_deployer.handlers.commands import Commands
from gyre_deployer.handlers.ledger import ConcurrentChange, RolloutLedger
from gyre_deployer.handlers.loading import LoadAttempts
from gyre_deployer.handlers.reconcile import Reconciler
from gyre_deployer.handlers.recovery import Recovery
from gyre_deployer.handlers.serving import Serving, WarmUp
from gyre_deployer.handlers.waiting import Waiting
from gyre_deployer.ports import Artifact, FencedByPeer, Refused
from gyre_deployer.wire import snapshot_message, state_of, view_message
from gyre_local.testing import eventually
from gyre_runtime import Precondition, Unavailable


class Crash(BaseException):
    """The process dies here."""


@dataclass
class World:
    """Everything outside of the process, which outlives its crashes."""

    spec: LoopSpec
    log: list[Change] = field(default_factory=list)
    views: list[RolloutView] = field(default_factory=list)
    snapshots: list[LoopState] = field(default_factory=list)
    registered: list[Candidate] = field(default_factory=list)
    reports: dict[str, Report] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    served: set[str] = field(default_factory=set)
    load_records: dict[str, LoadRecord] = field(default_factory=dict)
    alerts: list[Alert] = field(default_factory=list)
    ending: set[str] = field(default_factory=set)
    lost_artifacts: set[str] = field(default_factory=set)
    loads: list[str] = field(default_factory=list)
    filling: dict[str, str] = field(default_factory=dict)
    now: float = 1000.0
    calls: int = 0
    failing_call: int = -1
    failure: type[BaseException] = Crash
    holds: asyncio.Event | None = None

    @property
    def layout(self) -> Layout:
        """The loop's layout."""
        return Layout.compile(self.spec)

    def register(self, version: str, **changes: object) -> Candidate:
        """Announce a candidate."""
        candidate = Candidate(
            self.spec.loop, version, f"run-{version}", self.layout.hash, self.layout.columns, f"/{version}", "0" * 64
        )
        self.registered.append(replace(candidate, **changes))  # type: ignore[arg-type]
        return self.registered[-1]

    def fail(self) -> None:
        """Count a call to the outside; the chosen one fails."""
        self.calls += 1
        if self.calls == self.failing_call:
            if self.failure is Unavailable:
                raise Unavailable("AWAY", "for a moment")
            raise self.failure

    def serve(self, version: str, requests: int, *, failures: int = 0, instance: str = "g1", **traits: object) -> None:
        """Let a gateway have seen further requests, and acknowledge the newest epoch."""
        before = self.reports.get(instance, Report(instance, 0, 0.0, 0.0))
        counts = dict(before.counts)
        more = Counts(requests, failures, (0.1,), (requests - failures, 0))
        counts[version] = counts.get(version, Counts()).plus(more)
        epoch = self.log[-1].epoch if self.log else 0
        self.reports[instance] = replace(
            before,
            epoch=epoch,
            time=self.now,
            lease_s=5.0,
            counts=counts,
            **traits,  # type: ignore[arg-type]
        )


class FakeLog:
    """See `RolloutLog`; fails before or after the write."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def read(self) -> tuple[LoopState, int]:
        """See `RolloutLog`."""
        self.world.fail()
        state = self.world.snapshots[-1] if self.world.snapshots else LoopState(self.world.spec.loop)
        snapshot_epoch = state.epoch
        for change in self.world.log[snapshot_epoch:]:
            state = apply(state, change)
        return state, snapshot_epoch

    async def append(
        self, changes: Sequence[Change], state: LoopState, *, waiting: Sequence[Candidate], is_snapshot: bool
    ) -> None:
        """See `RolloutLog`."""
        self.world.fail()
        self.world.log.extend(changes)
        self.world.views.append(view_message(state, waiting))
        if is_snapshot:
            self.world.snapshots.append(state_of(snapshot_message(state, len(self.world.log))))
        self.world.fail()

    async def reopen(self) -> None:
        """See `RolloutLog`."""


class FakeServer:
    """See `ModelServer`."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def is_live(self) -> bool:
        """See `ModelServer`."""
        return True

    async def is_ready(self, name: str) -> bool:
        """See `ModelServer`."""
        self.world.fail()
        return name in self.world.served

    async def ready_models(self) -> frozenset[str]:
        """See `ModelServer`."""
        self.world.fail()
        return frozenset(self.world.served)

    async def load(self, name: str) -> None:
        """See `ModelServer`."""
        self.world.fail()
        if self.world.holds is not None:
            await self.world.holds.wait()
        _, version = split_model(name) or ("", "")
        self.world.loads.append(version)
        if version in self.world.ending:
            self.world.served.clear()
            raise Unavailable("AWAY", "the connection broke")
        if self.world.files.get(version) == b"broken":
            raise Refused("cannot be loaded")
        assert version in self.world.files
        self.world.served.add(name)
        self.world.fail()

    async def unload(self, name: str) -> None:
        """See `ModelServer`."""
        self.world.fail()
        self.world.served.discard(name)

    async def score(self, name: str, features: np.ndarray) -> np.ndarray:
        """See `ModelServer`."""
        self.world.fail()
        assert name in self.world.served
        return features.sum(axis=1)


class FakeRepository:
    """See `ModelRepository`."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def install(self, candidate: Candidate, graph: bytes, columns: int) -> bool:
        """See `ModelRepository`."""
        changed = self.world.files.get(candidate.version) != graph
        self.world.files[candidate.version] = graph
        self.world.fail()
        return changed

    async def load_records(self, loop: str) -> dict[str, LoadRecord]:
        """See `ModelRepository`."""
        self.world.fail()
        return dict(self.world.load_records)

    async def write_load_record(self, loop: str, version: str, record: LoadRecord | None) -> None:
        """See `ModelRepository`."""
        self.world.fail()
        self.world.load_records.pop(version, None)
        if record is not None:
            self.world.load_records[version] = record
        self.world.fail()

    async def holds(self, loop: str, version: str) -> bool:
        """See `ModelRepository`."""
        return version in self.world.files

    async def versions(self, loop: str) -> list[str]:
        """See `ModelRepository`."""
        return sorted(self.world.files)

    async def remove(self, loop: str, version: str) -> None:
        """See `ModelRepository`."""
        self.world.files.pop(version, None)
        self.world.fail()


class FakeArtifacts:
    """See `Artifacts`: the candidate's URI is its graph."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def read(self, candidate: Candidate) -> Artifact:
        """See `Artifacts`."""
        if candidate.version in self.world.lost_artifacts:
            raise Refused("the artefact cannot be read")
        graph = b"broken" if "broken" in candidate.artifact_uri else candidate.artifact_uri.encode()
        features = np.ones((4, 3), np.float32)
        return Artifact(graph, features, features.sum(axis=1))


class FakeAlerts:
    """See `Alerts`."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def publish(self, alert: Alert) -> None:
        """See `Alerts`."""
        self.world.alerts.append(alert)


class Registered:
    """See `Candidates`."""

    def __init__(self, world: World) -> None:
        self.world = world

    def all(self) -> list[Candidate]:
        """See `Candidates`."""
        return self.world.registered

    def settle(self, state: LoopState) -> int:
        """See `Candidates`."""
        return 0


class Reports:
    """See `Gateways`."""

    def __init__(self, world: World) -> None:
        self.world = world

    def reports(self) -> list[Report]:
        """See `Gateways`."""
        return list(self.world.reports.values())


@dataclass(frozen=True)
class FakeLayouts:
    """The layouts that the world's features service maintains, and what it says of those that it still fills."""

    world: World

    @property
    def loop(self) -> str:
        """See `Layouts`."""
        return self.world.spec.loop

    def columns(self, layout: str) -> Sequence[str] | None:
        """See `Layouts`."""
        return self.world.layout.columns if layout in (self.world.layout.hash, *self.world.filling) else None

    def waits_for(self, layout: str) -> str:
        """See `Layouts`."""
        return self.world.filling.get(layout, "")


@dataclass
class Process:
    """One life of the deployer in the world."""

    world: World
    ledger: RolloutLedger
    reconciler: Reconciler
    commands: Commands

    @classmethod
    def begin(cls, world: World) -> "Process":
        """A new process, which knows nothing yet."""
        ledger = RolloutLedger(world.spec.loop, FakeLog(world), now=lambda: world.now)
        server, repository = FakeServer(world), FakeRepository(world)
        clock = lambda: world.now  # noqa: E731 - the world's time, wherever it is then
        attempts = LoadAttempts(world.spec.loop, server, repository, first_backoff_s=0.1, now=clock)
        layouts = FakeLayouts(world)
        serving = Serving(layouts, server, repository, FakeArtifacts(world), WarmUp(2, 5), attempts)
        candidates = Registered(world)
        recovery = Recovery(ledger, serving, FakeAlerts(world), now=clock)
        ledger.candidates = candidates
        waiting = Waiting(ledger, candidates, layouts, 600.0, clock)
        reconciler = Reconciler(world.spec, ledger, recovery, waiting, Reports(world), now=clock)
        return cls(world, ledger, reconciler, Commands(ledger, candidates))

    async def look(self) -> None:
        """One look, as `run` takes it: what is away is tried again."""
        try:
            await self.reconciler.reconcile()
        except Unavailable:
            await self.ledger.reconnect()


@pytest.fixture
def world(spec: LoopSpec) -> World:
    """An empty world."""
    return World(spec)


def told(world: World, version: str) -> list[tuple[str, float]]:
    """Kind and share of each change of a version."""
    return [(each.kind.value, each.share) for each in world.log if each.version == version]


WAY_UP = [
    ("STARTED", 0.0),
    ("VALIDATED", 0.0),
    ("LOADED", 0.0),
    ("WARMED", 0.0),
    ("SHIFTED", 0.1),
    ("SHIFTED", 0.5),
    ("SHIFTED", 1.0),
    ("PROMOTED", 1.0),
]
FIRST = [*WAY_UP[:4], ("PROMOTED", 1.0)]


async def live_through(world: World, looks: int = 60) -> None:
    """Three candidates in turn, with traffic, over a crash or an outage where the world wants one."""
    process = Process.begin(world)
    for version in ("v1", "v2", "v3"):
        world.register(version)
        for _ in range(looks):
            try:
                await process.look()
            except Crash:
                process = Process.begin(world)
            world.now += 0.2
            for served in {each.version for each in world.registered}:
                world.serve(served, 30)
            state = process.ledger.state
            if state.live == version and state.under_way is None and sorted(world.files) == sorted(state.named):
                break
    assert world.served == {f"{world.spec.loop}--{version}" for version in ("v2", "v3")}
    assert sorted(world.files) == ["v2", "v3"]
    assert [each.epoch for each in world.log] == list(range(1, len(world.log) + 1))


async def calls_of_an_undisturbed_life(spec: LoopSpec) -> int:
    """How many calls to the outside there are."""
    world = World(spec)
    await live_through(world)
    assert told(world, "v1") == [*FIRST, ("UNLOADED", 0.0)]
    assert told(world, "v2") == told(world, "v3") == WAY_UP
    return world.calls


async def test_a_crash_at_any_call_loses_and_repeats_nothing(spec: LoopSpec) -> None:
    """Wherever the process dies, before or after a write, the next one ends with the same log and the same models."""
    for failing_call in range(1, await calls_of_an_undisturbed_life(spec) + 1):
        world = World(spec, failing_call=failing_call)
        await live_through(world)
        assert told(world, "v1") == [*FIRST, ("UNLOADED", 0.0)], failing_call
        assert told(world, "v2") == told(world, "v3") == WAY_UP, failing_call


async def test_an_outage_at_any_call_fails_no_rollout(spec: LoopSpec) -> None:
    """Whichever call finds nobody, also a write that happened all the same, every candidate is promoted."""
    for failing_call in range(1, await calls_of_an_undisturbed_life(spec) + 1):
        world = World(spec, failing_call=failing_call, failure=Unavailable)
        await live_through(world)
        for version in ("v2", "v3"):
            steps = told(world, version)
            assert list(dict.fromkeys(steps)) == WAY_UP, failing_call
            assert len(steps) <= len(WAY_UP) + 1, failing_call  # a step that is observed anew is written once more


async def canary(world: World) -> Process:
    """A process with v1 live, and v2 at its first step."""
    process = Process.begin(world)
    for version in ("v1", "v2"):
        world.register(version)
        for _ in range(6):
            await process.look()
    assert told(world, "v2") == WAY_UP[:5]
    return process


async def test_a_version_is_unloaded_only_after_the_last_deadline(world: World) -> None:
    """Acknowledged by all live gateways is not enough: calls under way get the longest deadline."""
    process = await canary(world)
    await process.commands.roll_back(process.ledger.state.current, "")
    await process.look()
    assert told(world, "v2")[-1][0] == "ROLLED_BACK"
    world.serve("v1", 0, instance="g1")
    world.reports["g2"] = Report("g2", epoch=1, time=world.now, lease_s=5.0)
    world.now += 4.9
    world.serve("v1", 0, instance="g1")
    await process.look()
    world.now += 0.2  # the lease of g2 is over
    await process.look()
    world.now += 0.19  # the deadline is not over
    await process.look()
    assert told(world, "v2")[-1][0] == "ROLLED_BACK"
    world.now += 0.02
    await process.look()
    await process.look()
    assert told(world, "v2")[-1][0] == "UNLOADED"
    assert world.served == {f"{world.spec.loop}--v1"}
    assert sorted(world.files) == ["v1"]


async def test_a_paused_canary_goes_nowhere_but_back(world: World) -> None:
    """It is held however long it is well, and rolled back all the same when it breaks a guardrail."""
    process = await canary(world)
    await process.commands.pause(process.ledger.state.current, "", resume=False)
    for _ in range(5):
        world.now += 10
        world.serve("v2", 1000)
        await process.look()
    assert told(world, "v2")[-1] == ("PAUSED", 0.1)
    for failures in (900, 0):
        world.serve("v1", 1000)
        world.serve("v2", 1000, failures=failures)
        await process.look()
    assert told(world, "v2")[-1] == ("ROLLED_BACK", 0.0)


async def test_what_was_seen_before_a_restart_is_seen_anew(world: World) -> None:
    """A restarted process holds the step's whole time, and counts requests, from its own start on."""
    await canary(world)
    world.serve("v2", 1000)
    world.now += 100
    process = Process.begin(world)
    await process.look()
    world.now += 0.4
    for requests, reached in ((19, 5), (1, 5), (0, 6)):  # what a second saw counts once the next one is known
        world.serve("v1", 9)
        world.serve("v2", requests)
        await process.look()
        assert told(world, "v2") == WAY_UP[:reached]


async def test_a_person_overtakes_a_step_under_way(world: World) -> None:
    """A rollback during a long load counts at once; what the load brought is cleaned up, and no more is written."""
    process = Process.begin(world)
    world.holds = asyncio.Event()
    world.register("v1")
    looking = asyncio.create_task(process.look())
    await eventually(lambda: world.files, message="the load is under way")
    await process.commands.roll_back(process.ledger.state.current, "no")
    world.holds.set()
    with pytest.raises(ConcurrentChange):
        await looking
    await process.look()
    assert told(world, "v1") == [("STARTED", 0.0), ("ROLLED_BACK", 0.0)]
    assert (world.served, world.files) == (set(), {})
    with pytest.raises(Precondition):
        await process.commands.promote(process.ledger.state.current, "")


async def looks(process: Process, count: int, *, pause_s: float = 0.5) -> None:
    """Look so many times while time goes by and v1 and v2 are served, as far as Triton holds them."""
    for _ in range(count):
        await process.look()
        process.world.now += pause_s
        process.world.serve("v1", 0)


async def test_a_candidate_that_cannot_be_restored_is_rolled_back(world: World) -> None:
    """Live is back at the first look; the candidate is tried three times with pauses, and two changes say the end."""
    process = await canary(world)
    before = len(world.log)
    world.files["v2"] = b"broken"
    world.lost_artifacts.add("v2")
    world.served.clear()
    world.loads.clear()
    await process.look()
    assert world.served == {f"{world.spec.loop}--v1"}
    await looks(process, 200, pause_s=0.05)
    assert world.loads == ["v1", "v2", "v2", "v2"]
    assert told(world, "v2")[-2:] == [("ROLLED_BACK", 0.0), ("UNLOADED", 0.0)]
    assert len(world.log) - before <= 3
    world.register("v3")
    await looks(process, 6)
    assert told(world, "v3")[-1] == ("SHIFTED", 0.1)


async def test_a_candidate_that_ends_triton_at_load_is_loaded_once(world: World) -> None:
    """It is rolled back as soon as Triton is back, before anything else is loaded, also by a restarted deployer."""
    process = await canary(world)
    world.register("v3")
    await process.commands.roll_back(process.ledger.state.current, "")
    world.ending.add("v3")
    await looks(process, 3)
    world.loads.clear()
    process = Process.begin(world)
    await looks(process, 50)
    assert told(world, "v3") == [("STARTED", 0.0), ("ROLLED_BACK", 0.0)]
    assert "the model server ended while it was loading" in str([change.reason for change in world.log])
    assert "v3" not in world.loads
    assert world.served == {f"{world.spec.loop}--v1"}
    assert world.load_records == {}


async def promoted_twice(world: World) -> Process:
    """A process with v2 live and v1 last good."""
    process = await canary(world)
    await process.commands.promote(process.ledger.state.current, "")
    await process.look()
    assert (process.ledger.state.live, process.ledger.state.last_good) == ("v2", "v1")
    return process


async def test_an_unloadable_live_model_falls_back_to_the_last_good_one(world: World) -> None:
    """Traffic goes to what loads, an alert fires until the next promotion, and the log grows by two changes."""
    process = await promoted_twice(world)
    before = len(world.log)
    world.files["v2"] = b"broken"
    world.lost_artifacts.add("v2")
    world.served.clear()
    world.loads.clear()
    await looks(process, 100, pause_s=0.05)
    assert world.loads[:2] == ["v2", "v1"]
    assert world.loads.count("v2") == 3
    assert [change.kind for change in world.log[before:]] == [Kind.FELL_BACK, Kind.UNLOADED]
    state = process.ledger.state
    assert (state.live, state.last_good, state.loaded) == ("v1", "", ("v1",))
    assert [each.end_time for each in world.alerts] == [None]
    world.register("v3")
    await looks(process, 6)
    await process.commands.promote(process.ledger.state.current, "")
    await looks(process, 3)
    assert [each.end_time is None for each in world.alerts] == [True, False]
    assert len({each.alert_id for each in world.alerts}) == 1


async def test_a_candidate_beside_a_live_model_that_falls_back_goes_on(world: World) -> None:
    """A rollout under way is then compared with, and rolled back to, what is live by now."""
    process = await promoted_twice(world)
    world.register("v3")
    await looks(process, 6)
    assert told(world, "v3")[-1] == ("SHIFTED", 0.1)
    world.files["v2"] = b"broken"
    world.lost_artifacts.add("v2")
    world.served.clear()
    await looks(process, 20)
    rollout = process.ledger.state.under_way
    assert rollout is not None
    assert (rollout.version, rollout.live_version) == ("v3", "v1")
    await process.commands.promote(rollout.id, "")
    await process.commands.roll_back(rollout.id, "")
    assert process.ledger.state.live == "v1"


async def test_an_unloadable_last_good_model_is_dropped(world: World) -> None:
    """The log says so once, live is untouched, and nothing is fallen back to any more."""
    process = await promoted_twice(world)
    before = len(world.log)
    world.files["v1"] = b"broken"
    world.lost_artifacts.add("v1")
    world.served.clear()
    await looks(process, 100)
    assert [(each.kind, each.version) for each in world.log[before:]] == [(Kind.DROPPED, "v1"), (Kind.UNLOADED, "v1")]
    assert (process.ledger.state.live, process.ledger.state.last_good) == ("v2", "")
    assert world.alerts == []
    with pytest.raises(Precondition):
        await process.commands.roll_back(process.ledger.state.rollouts[process.ledger.state.current].id, "")


async def test_a_live_model_without_a_successor_is_tried_for_ever_and_holds_nobody_back(world: World) -> None:
    """Pauses grow to a minute, an alert fires, the log stands still, a fix is rolled out; once it loads, that ends."""
    process = await canary(world)
    await process.commands.roll_back(process.ledger.state.current, "")
    await looks(process, 5)
    before = len(world.log)
    world.files["v1"] = b"broken"
    world.lost_artifacts.add("v1")
    world.served.clear()
    world.loads.clear()
    await looks(process, 600)
    assert len(world.log) == before
    assert 5 < len(world.loads) < 20
    assert [each.end_time for each in world.alerts] == [None]
    world.register("v3")
    await looks(process, 6)
    assert told(world, "v3")[-1] == ("SHIFTED", 0.1)
    world.lost_artifacts.clear()
    await looks(process, 200)
    assert f"{world.spec.loop}--v1" in world.served
    assert [each.end_time is None for each in world.alerts] == [True, False]


async def test_a_triton_that_is_away_again_and_again_ends_the_rollout(world: World) -> None:
    """A canary is observed anew a few times, then rolled back: the log does not grow with every restart of Triton."""
    process = await canary(world)
    before = len(world.log)
    for _ in range(30):
        world.served.clear()
        await looks(process, 2)
    assert told(world, "v2")[-2:] == [("ROLLED_BACK", 0.0), ("UNLOADED", 0.0)]
    assert len(world.log) - before == 5 + 2


async def test_a_triton_that_is_away_again_and_again_before_traffic_ends_the_rollout_too(world: World) -> None:
    """A candidate that loads and is lost each time soon after is given up before it has users."""
    process = Process.begin(world)
    world.register("v1")
    await looks(process, 6)
    world.register("v2")
    while told(world, "v2")[-1:] != [("LOADED", 0.0)]:
        await process.look()
    await process.commands.pause(process.ledger.state.current, "", resume=False)
    for _ in range(30):
        world.served.clear()
        await looks(process, 2)
    assert [kind for kind, _ in told(world, "v2")[3:]] == ["PAUSED", "ROLLED_BACK", "UNLOADED"]


async def test_lost_files_of_a_loaded_version_are_installed_again(world: World) -> None:
    """A repository that lost its files gets them back from the artefacts."""
    process = await canary(world)
    world.files.clear()
    world.served.clear()
    await process.look()
    assert sorted(world.files) == ["v1", "v2"]
    assert len(world.served) == 2
    assert told(world, "v2")[-1] == ("SHIFTED", 0.1)
    assert process.ledger.state.under_way is not None
    assert "anew" in process.ledger.state.under_way.reason


async def test_an_epoch_of_somebody_else_ends_the_process(world: World) -> None:
    """A deployer that sees a newer epoch than its own knows that it was replaced, and writes nothing more."""
    process = await canary(world)
    process.ledger.note_epoch(process.ledger.state.epoch)
    await process.look()
    process.ledger.note_epoch(process.ledger.state.epoch + 1)
    with pytest.raises(FencedByPeer):
        await process.look()


async def test_a_bad_candidate_does_not_reach_the_log_as_loaded(world: World) -> None:
    """What Triton cannot load is refused, and its files go."""
    process = Process.begin(world)
    world.register("v1", artifact_uri="/broken")
    await process.look()
    await process.look()
    assert told(world, "v1") == [("STARTED", 0.0), ("REFUSED", 0.0)]
    assert world.files == {}
    rollout = process.ledger.state.of_version("v1")
    assert rollout is not None
    assert (rollout.state, rollout.reason) == (State.REFUSED, "cannot be loaded")


async def test_a_write_is_not_cut_in_two_by_a_cancelled_caller(world: World) -> None:
    """A caller that goes away in the middle of a write leaves log and state in agreement."""
    process = await canary(world)
    pausing = asyncio.create_task(process.commands.pause(process.ledger.state.current, "", resume=False))
    await asyncio.sleep(0)
    pausing.cancel()
    await asyncio.gather(pausing, return_exceptions=True)
    async with process.ledger:
        await process.look()
    assert len(world.log) == process.ledger.state.epoch
    assert [each.kind for each in world.log if each.kind == Kind.PAUSED] in ([], [Kind.PAUSED])


async def test_a_candidate_whose_layout_is_filled_holds_nobody_back(world: World) -> None:
    """It waits, named in the projection, while others are rolled out; filled, it is next; too late, it is refused."""
    process = Process.begin(world)
    world.filling["f" * 16] = "layout ffff is being filled: 43 %"
    world.register("v1", layout="f" * 16)
    await process.look()
    assert [(each.version, each.role, each.layout) for each in world.views[-1].models] == [("v1", 4, "f" * 16)]
    assert process.ledger.waiting_for == "v1: layout ffff is being filled: 43 %"
    written = len(world.views)
    await process.look()
    assert len(world.views) == written
    world.register("v0", layout=world.layout.hash)
    world.registered.reverse()
    for _ in range(8):
        await process.look()
    assert told(world, "v0") == FIRST
    assert told(world, "v1") == []
    world.filling["f" * 16] = ""
    await process.look()
    assert told(world, "v1")[0] == ("STARTED", 0.0)
    world.filling["e" * 16] = "layout eeee is being filled: 99 %"
    world.register("v2", layout="e" * 16)
    await process.look()
    world.now += 601
    await process.look()
    assert told(world, "v2") == [("REFUSED", 0.0)]
