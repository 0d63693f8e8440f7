"""The rollouts of one loop: the changes that the log holds, and the state that they fold into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Kind(StrEnum):
    """What happened to a rollout; the names are those of the proto's `RolloutEventKind`."""

    STARTED = "STARTED"
    VALIDATED = "VALIDATED"
    LOADED = "LOADED"
    WARMED = "WARMED"
    SHIFTED = "SHIFTED"
    PROMOTED = "PROMOTED"
    ROLLED_BACK = "ROLLED_BACK"
    PAUSED = "PAUSED"
    RESUMED = "RESUMED"
    UNLOADED = "UNLOADED"
    REFUSED = "REFUSED"
    DROPPED = "DROPPED"
    FELL_BACK = "FELL_BACK"


class RolloutState(StrEnum):
    """Where a rollout stands; the names are those of the proto's `RolloutState`."""

    STARTED = "STARTED"
    VALIDATED = "VALIDATED"
    LOADED = "LOADED"
    WARMED = "WARMED"
    CANARY = "CANARY"
    PAUSED = "PAUSED"
    PROMOTED = "PROMOTED"
    ROLLED_BACK = "ROLLED_BACK"
    REFUSED = "REFUSED"


BEFORE_TRAFFIC = frozenset({RolloutState.STARTED, RolloutState.VALIDATED, RolloutState.LOADED, RolloutState.WARMED})
RUNNING = BEFORE_TRAFFIC | {RolloutState.CANARY}
UNDER_WAY = RUNNING | {RolloutState.PAUSED}
ENDED = frozenset(RolloutState) - UNDER_WAY

_FROM: Mapping[Kind, frozenset[RolloutState]] = {
    Kind.VALIDATED: frozenset({RolloutState.STARTED}),
    Kind.LOADED: frozenset({RolloutState.VALIDATED}),
    Kind.WARMED: frozenset({RolloutState.LOADED}),
    Kind.SHIFTED: frozenset({RolloutState.WARMED, RolloutState.CANARY, RolloutState.PAUSED}),
    Kind.PROMOTED: frozenset({RolloutState.WARMED, RolloutState.CANARY, RolloutState.PAUSED}),
    Kind.ROLLED_BACK: UNDER_WAY | {RolloutState.PROMOTED},
    Kind.REFUSED: BEFORE_TRAFFIC,
    Kind.PAUSED: RUNNING,
    Kind.RESUMED: frozenset({RolloutState.PAUSED}),
    Kind.UNLOADED: ENDED,
    Kind.DROPPED: frozenset({RolloutState.PROMOTED}),
    Kind.FELL_BACK: frozenset({RolloutState.PROMOTED}),
}
"""The states from which each change may come; STARTED, and REFUSED without a start, begin a rollout."""

_TO: Mapping[Kind, RolloutState] = {
    Kind.STARTED: RolloutState.STARTED,
    Kind.VALIDATED: RolloutState.VALIDATED,
    Kind.LOADED: RolloutState.LOADED,
    Kind.WARMED: RolloutState.WARMED,
    Kind.SHIFTED: RolloutState.CANARY,
    Kind.PROMOTED: RolloutState.PROMOTED,
    Kind.ROLLED_BACK: RolloutState.ROLLED_BACK,
    Kind.REFUSED: RolloutState.REFUSED,
    Kind.PAUSED: RolloutState.PAUSED,
    Kind.FELL_BACK: RolloutState.ROLLED_BACK,
}
WITHOUT_STEP = frozenset({Kind.UNLOADED, Kind.DROPPED})
"""Changes that leave a rollout in the state that it is in."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A registered model.

    Attributes:
        loop: it belongs to.
        version: unique within the loop.
        run_id: the training run behind it.
        layout: hash of the feature layout that it reads.
        columns: of the layout that it reads.
        artifact_uri: path or file URI of the artefact folder.
        sha256: of the graph, hexadecimal.
        trigger_id: what started the run.
        snapshots: Iceberg snapshot ids of the training set, by table.
        measurements: its offline evaluation.
        traceparent: trace context of its registration; not kept in the log.
    """

    loop: str
    version: str
    run_id: str
    layout: str
    columns: tuple[str, ...]
    artifact_uri: str
    sha256: str
    trigger_id: str = ""
    snapshots: Mapping[str, int] = field(default_factory=dict)
    measurements: Mapping[str, float] = field(default_factory=dict)
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the log.

    Attributes:
        rollout_id: whose change it is.
        kind: what happened.
        version: the candidate's.
        live_version: that the candidate is measured against; empty for the first model.
        share: of users that the candidate has afterwards, 0 to 1.
        step: index in `rollout.steps`.
        reason: in words for a person.
        epoch: of the loop's state afterwards; 0 until it is written.
        time: on the wall clock, unix seconds; 0 until it is written.
        candidate: in full, where the change begins a rollout.
        traceparent: trace context of the rollout, on STARTED.
    """

    rollout_id: str
    kind: Kind
    version: str
    live_version: str = ""
    share: float = 0.0
    step: int = 0
    reason: str = ""
    epoch: int = 0
    time: float = 0.0
    candidate: Candidate | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One candidate's way.

    Attributes:
        id: of the rollout.
        candidate: that is rolled out.
        live_version: when it began; empty for the first model.
        state: where it stands.
        resumes_to: the state that a paused rollout goes back to.
        share: of users, 0 to 1.
        step: index in `rollout.steps`.
        observed_since: time of the change from which on its behaviour is watched, unix seconds.
        observed_epoch: epoch of that change.
        traceparent: trace context of the rollout.
        changes: so far, oldest first.
    """

    id: str
    candidate: Candidate
    live_version: str
    state: RolloutState
    resumes_to: RolloutState = RolloutState.STARTED
    share: float = 0.0
    step: int = 0
    observed_since: float = 0.0
    observed_epoch: int = 0
    traceparent: str = ""
    changes: tuple[Change, ...] = ()

    @property
    def version(self) -> str:
        """The candidate's version."""
        return self.candidate.version

    @property
    def is_under_way(self) -> bool:
        """Whether it has not ended."""
        return self.state in UNDER_WAY

    @property
    def stage(self) -> RolloutState:
        """The state that it is in, or that it goes back to once it is not paused any more."""
        return self.resumes_to if self.state == RolloutState.PAUSED else self.state

    @property
    def is_withdrawn(self) -> bool:
        """Whether it waits to get traffic again; one that was paused without traffic has none until it is resumed."""
        if self.share > 0 or self.stage != RolloutState.CANARY:
            return False
        pauses = (each.share for each in reversed(self.changes) if each.kind == Kind.PAUSED)
        return self.state == RolloutState.CANARY or next(pauses, 0.0) > 0

    @property
    def is_on_traffic(self) -> bool:
        """Whether the candidate has users while it is still being watched."""
        return self.is_under_way and self.share > 0

    @property
    def reason(self) -> str:
        """Why it stands where it stands."""
        return next((each.reason for each in reversed(self.changes) if each.kind != Kind.UNLOADED), "")


@dataclass(frozen=True, slots=True)
class LoopState:
    """All that the log says.

    Attributes:
        loop: the loop.
        epoch: of the last change.
        rollouts: by id, in the order in which they began.
        current: id of the rollout that was started last.
        live: the live version; empty before the first model.
        last_good: the version to fall back to.
        loaded: versions on the inference servers, in the order in which they were loaded.
        unnamed: for each loaded version that no request is sent to any more, the epoch since which that is so.
        change_time: of the last change, unix seconds.
        candidates_offset: in the topic of candidates, before which the rollout of each was decided.
    """

    loop: str
    epoch: int = 0
    rollouts: Mapping[str, Rollout] = field(default_factory=dict)
    current: str = ""
    live: str = ""
    last_good: str = ""
    loaded: tuple[str, ...] = ()
    unnamed: Mapping[str, int] = field(default_factory=dict)
    change_time: float = 0.0
    candidates_offset: int = 0

    @property
    def under_way(self) -> Rollout | None:
        """The one rollout that has not ended."""
        rollout = self.rollouts.get(self.current)
        return rollout if rollout is not None and rollout.is_under_way else None

    def of_version(self, version: str) -> Rollout | None:
        """The newest rollout of a version, which may have been offered again after an earlier one had ended."""
        return next((each for each in reversed(tuple(self.rollouts.values())) if each.version == version), None)

    @property
    def named(self) -> frozenset[str]:
        """Versions that requests may be sent to, or soon will."""
        under_way = self.under_way
        wanted = {self.live, self.last_good, under_way.version if under_way else ""}
        return frozenset(wanted - {""})

    @property
    def used(self) -> frozenset[str]:
        """Versions whose files the model server needs: those that it holds, and the one that is rolled out."""
        under_way = self.under_way
        return frozenset({*self.loaded, *((under_way.version,) if under_way is not None else ())})


def fold(loop: str, changes: Iterable[Change]) -> LoopState:
    """The state that a whole log says.

    Raises:
        ValueError: the log holds a change that cannot follow those before it.
    """
    state = LoopState(loop)
    for change in changes:
        state = apply(state, change)
    return state


def apply(state: LoopState, change: Change) -> LoopState:
    """The state after one more change.

    Raises:
        ValueError: the change cannot follow.
    """
    if change.epoch <= state.epoch:
        raise ValueError(f"epoch {change.epoch} of {change.kind}: must be above {state.epoch}")
    before = state.rollouts.get(change.rollout_id)
    after = _started(state, change) if before is None else _moved(before, change)
    _require_role(state, change)
    changed = replace(
        state,
        epoch=change.epoch,
        change_time=change.time,
        rollouts={**state.rollouts, after.id: after},
        current=after.id if change.kind == Kind.STARTED else state.current,
    )
    return _with_unnamed(_with_versions(changed, before, change))


def rollout_of(changes: Sequence[Change]) -> Rollout:
    """The rollout that a run of changes, oldest first, is the whole history of.

    Raises:
        ValueError: a change cannot follow those before it.
    """
    rollout = _first_of(changes[0])
    for change in changes[1:]:
        rollout = _moved(rollout, change)
    return rollout


def trimmed(state: LoopState, max_ended: int) -> LoopState:
    """The state without the oldest rollouts that have ended; those of versions that are named or loaded stay.

    Args:
        state: of a loop.
        max_ended: how many others stay.
    """
    used = state.named | set(state.loaded)
    spare = [each.id for each in state.rollouts.values() if each.id != state.current and each.version not in used]
    gone = set(spare[: max(0, len(spare) - max_ended)])
    if not gone:
        return state
    return replace(state, rollouts={name: each for name, each in state.rollouts.items() if name not in gone})


def _require_role(state: LoopState, change: Change) -> None:
    """Only the live model can fall back, and only to a model that is left; only the last good one can be dropped."""
    if change.kind == Kind.DROPPED and change.version != state.last_good:
        raise ValueError(f"{change.kind} of {change.version}: cannot follow while {state.last_good!r} is last good")
    if change.kind == Kind.FELL_BACK and (change.version != state.live or not state.last_good):
        raise ValueError(f"{change.kind} of {change.version}: cannot follow while {state.live!r} is live")


def _started(state: LoopState, change: Change) -> Rollout:
    if change.kind == Kind.STARTED and state.under_way is not None:
        raise ValueError(f"rollout {change.rollout_id}: must not start while {state.current} is under way")
    return _first_of(change)


def _first_of(change: Change) -> Rollout:
    if change.kind not in (Kind.STARTED, Kind.REFUSED) or change.candidate is None:
        raise ValueError(f"{change.kind} of rollout {change.rollout_id}: must follow its start")
    return Rollout(
        id=change.rollout_id,
        candidate=change.candidate,
        live_version=change.live_version,
        state=_TO[change.kind],
        traceparent=change.traceparent,
        changes=(change,),
    )


def _moved(rollout: Rollout, change: Change) -> Rollout:
    is_held = change.kind == Kind.SHIFTED and rollout.state == RolloutState.PAUSED
    if rollout.state not in _FROM.get(change.kind, frozenset()) or (is_held and rollout.stage != RolloutState.CANARY):
        raise ValueError(f"{change.kind} of rollout {rollout.id}: cannot follow {rollout.state}")
    moved = replace(rollout, changes=(*rollout.changes, change))
    if change.kind in WITHOUT_STEP:
        return moved
    if is_held:
        moved = replace(moved, share=change.share, step=change.step)
    else:
        state = rollout.resumes_to if change.kind == Kind.RESUMED else _TO[change.kind]
        moved = replace(moved, state=state, share=change.share, step=change.step, resumes_to=rollout.state)
    if change.kind in (Kind.SHIFTED, Kind.RESUMED):
        return replace(moved, observed_since=change.time, observed_epoch=change.epoch)
    return moved


def _with_versions(state: LoopState, before: Rollout | None, change: Change) -> LoopState:
    """Who is live, what to fall back to, and what is loaded."""
    version = change.version
    others = tuple(each for each in state.loaded if each != version)
    match change.kind:
        case Kind.LOADED:
            state = replace(state, loaded=(*others, version))
        case Kind.UNLOADED:
            state = replace(state, loaded=others)
        case Kind.PROMOTED:
            state = replace(state, live=version, last_good=state.live)
        case Kind.ROLLED_BACK if before is not None and before.state == RolloutState.PROMOTED:
            state = replace(state, live=change.live_version, last_good="")
        case Kind.DROPPED:
            state = replace(state, last_good="")
        case Kind.FELL_BACK:
            state = replace(_compared_with(state, state.last_good, change), live=state.last_good, last_good="")
    return state


def _compared_with(state: LoopState, live: str, change: Change) -> LoopState:
    """Let the rollout under way, if there is one, be observed from now on beside another live version."""
    rollout = state.under_way
    if rollout is None:
        return state
    rebased = replace(rollout, live_version=live, observed_since=change.time, observed_epoch=change.epoch)
    return replace(state, rollouts={**state.rollouts, rollout.id: rebased})


def _with_unnamed(state: LoopState) -> LoopState:
    left = [version for version in state.loaded if version not in state.named]
    return replace(state, unnamed={version: state.unnamed.get(version, state.epoch) for version in left})
