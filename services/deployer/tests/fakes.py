"""Hand-written fakes of all that the deployer works with, and one life of the deployer among them."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from gyre.events.v1.models_pb2 import RolloutView
from gyre_core.features import Layout
from gyre_core.models import split_model, triton_model
from gyre_core.spec import LoopSpec
from gyre_deployer.domain.alerts import Alert
from gyre_deployer.domain.candidates import UndecidedCandidates
from gyre_deployer.domain.loading import LoadRecord, ModelState
from gyre_deployer.domain.observation import ObservedGateway, VersionRequests
from gyre_deployer.domain.rollouts import Candidate, Change, LoopState, apply
from gyre_deployer.handlers.clock import Clock
from gyre_deployer.handlers.commands import Commands
from gyre_deployer.handlers.ledger import RolloutLedger
from gyre_deployer.handlers.loading import LoadAttempts
from gyre_deployer.handlers.reconcile import Reconciler
from gyre_deployer.handlers.recovery import Recovery
from gyre_deployer.handlers.serving import ServedVersions, WarmUp
from gyre_deployer.handlers.waiting import Waiting
from gyre_deployer.ports import Artifact, CandidateRefused
from gyre_deployer.wire import snapshot_message, state_of, view_message
from gyre_runtime import Unavailable


class Crash(BaseException):
    """The process dies here."""


@dataclass
class World:
    """Everything outside of the process, which outlives its crashes; its wall clock is `ahead_s` ahead of the time."""

    spec: LoopSpec
    log: list[Change] = field(default_factory=list)
    views: list[RolloutView] = field(default_factory=list)
    snapshots: list[LoopState] = field(default_factory=list)
    registered: list[Candidate] = field(default_factory=list)
    reports: dict[str, ObservedGateway] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    served: set[str] = field(default_factory=set)
    unavailable: set[str] = field(default_factory=set)
    loading: set[str] = field(default_factory=set)
    load_records: dict[str, LoadRecord] = field(default_factory=dict)
    neighbours: "list[World]" = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    ending: set[str] = field(default_factory=set)
    lost_artifacts: set[str] = field(default_factory=set)
    loads: list[str] = field(default_factory=list)
    filling: dict[str, str] = field(default_factory=dict)
    now: float = 1000.0
    ahead_s: float = 0.0
    calls: int = 0
    failing_call: int = -1
    failure: type[BaseException] = Crash
    on_failure: Callable[[], None] = field(default=lambda: None)
    asking: str = ""
    at_load: Callable[[str], None] = field(default=lambda version: None)
    holds: asyncio.Event | None = None

    @property
    def wall(self) -> float:
        """What the wall clock says, unix seconds."""
        return self.now + self.ahead_s

    @property
    def clock(self) -> Clock:
        """The clocks of a process."""
        return Clock(lambda: self.wall, lambda: self.now)

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

    def model(self, version: str) -> str:
        """The name of a version on Triton."""
        return triton_model(self.spec.loop, version)

    def restart_triton(self) -> None:
        """Triton has forgotten what it held, and what it was asked for."""
        for models in (self.served, self.unavailable, self.loading):
            models.clear()

    def fail(self) -> None:
        """Count a call to the outside; the chosen one fails."""
        self.calls += 1
        if self.calls == self.failing_call:
            self.on_failure()
            if self.failure is Unavailable:
                raise Unavailable("AWAY", "for a moment")
            raise self.failure

    def serve(self, version: str, requests: int, *, failures: int = 0, instance: str = "g1", **traits: object) -> None:
        """Let a gateway have seen further requests, and acknowledge the newest epoch."""
        before = self.reports.get(instance, ObservedGateway(instance, 0, 0.0, 0.0))
        counts = dict(before.counts)
        more = VersionRequests(requests, failures, (0.1,), (requests - failures, 0))
        counts[version] = counts.get(version, VersionRequests()).plus(more)
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

    async def models(self) -> dict[str, ModelState]:
        """See `ModelServer`."""
        self.world.fail()
        states = {
            world.model(version): ModelState.UNASKED
            for world in (self.world, *self.world.neighbours)
            for version in world.files
        }
        states |= dict.fromkeys(self.world.unavailable, ModelState.UNAVAILABLE)
        states |= dict.fromkeys(self.world.loading, ModelState.LOADING)
        return states | dict.fromkeys(self.world.served, ModelState.READY)

    async def load(self, name: str) -> None:
        """See `ModelServer`."""
        self.world.asking = name
        self.world.fail()
        if self.world.holds is not None:
            await self.world.holds.wait()
        _, version = split_model(name) or ("", "")
        self.world.loads.append(version)
        self.world.at_load(version)
        if version in self.world.ending:
            self.world.restart_triton()
            raise Unavailable("AWAY", "the connection broke")
        if self.world.files.get(version) == b"broken":
            self.world.unavailable.add(name)
            raise CandidateRefused("cannot be loaded")
        assert version in self.world.files
        self.world.unavailable.discard(name)
        self.world.served.add(name)
        self.world.fail()
        self.world.asking = ""

    async def unload(self, name: str) -> None:
        """See `ModelServer`."""
        self.world.fail()
        if name in self.world.served:
            self.world.served.discard(name)
            self.world.unavailable.add(name)

    async def score(self, name: str, features: np.ndarray) -> np.ndarray:
        """See `ModelServer`."""
        self.world.asking = name
        self.world.fail()
        assert name in self.world.served
        self.world.asking = ""
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

    async def load_records(self) -> dict[str, LoadRecord]:
        """See `ModelRepository`."""
        self.world.fail()
        return dict(self.world.load_records)

    async def write_load_record(self, model: str, record: LoadRecord | None) -> None:
        """See `ModelRepository`."""
        self.world.fail()
        self.world.load_records.pop(model, None)
        if record is not None:
            self.world.load_records[model] = record
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
            raise CandidateRefused("the artefact cannot be read")
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
    """See `Candidates`: each record of the world's topic is read once, from where the newest snapshot says."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._next = world.snapshots[-1].candidates_offset if world.snapshots else 0
        self._undecided = UndecidedCandidates(self._next)

    def _read(self) -> UndecidedCandidates:
        for candidate in self.world.registered[self._next :]:
            self._undecided.take(self._next, candidate)
            self._next += 1
        return self._undecided

    def all(self) -> list[Candidate]:
        """See `Candidates`."""
        return self._read().all()

    def decided_offset(self, state: LoopState) -> int:
        """See `Candidates`."""
        return self._undecided.decided_offset(state)

    def prune(self, state: LoopState) -> None:
        """See `Candidates`."""
        self._undecided.prune(state)


class Reports:
    """See `Gateways`."""

    def __init__(self, world: World) -> None:
        self.world = world

    def reports(self) -> list[ObservedGateway]:
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


def load_attempts(world: World, on_trial: Callable[[], Collection[str]] = tuple) -> LoadAttempts:
    """The attempts to load on the world's Triton."""
    server, repository = FakeServer(world), FakeRepository(world)
    return LoadAttempts(server, repository, first_backoff_s=0.1, timeout_s=5.0, on_trial=on_trial, clock=world.clock)


@dataclass
class Process:
    """One life of the deployer in the world."""

    world: World
    ledger: RolloutLedger
    reconciler: Reconciler
    commands: Commands

    @classmethod
    def begin(cls, world: World, attempts: LoadAttempts | None = None) -> "Process":
        """A new process, which knows nothing yet; loops that share a Triton share the attempts to load, too."""
        ledger = RolloutLedger(world.spec.loop, FakeLog(world), now=lambda: world.wall)
        server, repository = FakeServer(world), FakeRepository(world)
        attempts = attempts or load_attempts(world)
        layouts = FakeLayouts(world)
        serving = ServedVersions(layouts, server, repository, FakeArtifacts(world), WarmUp(2, 5), attempts)
        candidates = Registered(world)
        recovery = Recovery(ledger, serving, FakeAlerts(world), first_pause_s=0.5, clock=world.clock)
        ledger.candidates = candidates
        waiting = Waiting(ledger, candidates, layouts, 600.0, world.clock.monotonic)
        reconciler = Reconciler(world.spec, ledger, recovery, waiting, Reports(world), clock=world.clock)
        return cls(world, ledger, reconciler, Commands(ledger, candidates))

    async def look(self) -> None:
        """One look, as `run` takes it: what is away is tried again."""
        try:
            await self.reconciler.reconcile()
        except Unavailable:
            await self.ledger.reconnect()


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


async def canary(world: World) -> Process:
    """A process with v1 live, and v2 at its first step."""
    process = Process.begin(world)
    for version in ("v1", "v2"):
        world.register(version)
        for _ in range(6):
            await process.look()
    assert told(world, "v2") == WAY_UP[:5]
    return process


async def looks(process: Process, count: int, *, pause_s: float = 0.5) -> None:
    """Look so many times while time goes by and v1 and v2 are served, as far as Triton holds them."""
    for _ in range(count):
        await process.look()
        process.world.now += pause_s
        process.world.serve("v1", 0)
