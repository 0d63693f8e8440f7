"""Domain objects as messages and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from google.protobuf.timestamp_pb2 import Timestamp
from gyre.deployer.v1 import deployer_pb2 as pb
from gyre.events.v1 import models_pb2 as events

from gyre_deployer.domain.observation import ObservedGateway, VersionRequests
from gyre_deployer.domain.projection import arms, named_models
from gyre_deployer.domain.rollouts import Candidate, Change, Kind, LoopState, Rollout, rollout_of

_KIND = "ROLLOUT_EVENT_KIND_"
_STATE = "ROLLOUT_STATE_"


def timestamp(unix_s: float) -> Timestamp:
    """A time as a message, to the microsecond."""
    message = Timestamp()
    message.FromMicroseconds(round(unix_s * 1e6))
    return message


def seconds(message: Timestamp) -> float:
    """The opposite of `timestamp`."""
    return message.ToMicroseconds() / 1e6


def candidate_message(candidate: Candidate) -> events.CandidateRegistered:
    """A candidate as it was registered."""
    return events.CandidateRegistered(
        loop=candidate.loop,
        version=candidate.version,
        run_id=candidate.run_id,
        layout=candidate.layout,
        columns=candidate.columns,
        artifact_uri=candidate.artifact_uri,
        sha256=candidate.sha256,
        trigger_id=candidate.trigger_id,
        snapshots=candidate.snapshots,
        measurements=[events.Measurement(name=name, value=value) for name, value in candidate.measurements.items()],
    )


def candidate_of(message: events.CandidateRegistered, traceparent: str | None = None) -> Candidate:
    """The opposite of `candidate_message`."""
    return Candidate(
        loop=message.loop,
        version=message.version,
        run_id=message.run_id,
        layout=message.layout,
        columns=tuple(message.columns),
        artifact_uri=message.artifact_uri,
        sha256=message.sha256,
        trigger_id=message.trigger_id,
        snapshots=dict(message.snapshots),
        measurements={each.name: each.value for each in message.measurements},
        traceparent=traceparent or "",
    )


def change_message(loop: str, change: Change) -> events.RolloutEvent:
    """A change as an entry of the log."""
    return events.RolloutEvent(
        loop=loop,
        rollout_id=change.rollout_id,
        kind=events.RolloutEventKind.Value(_KIND + change.kind),
        epoch=change.epoch,
        version=change.version,
        live_version=change.live_version,
        share=change.share,
        step=change.step,
        reason=change.reason,
        change_time=timestamp(change.time),
        candidate=candidate_message(change.candidate) if change.candidate else None,
    )


def change_of(message: events.RolloutEvent, traceparent: str | None) -> Change:
    """The opposite of `change_message`; the record's header carries the rollout's trace context on STARTED."""
    kind = Kind(events.RolloutEventKind.Name(message.kind).removeprefix(_KIND))
    return Change(
        rollout_id=message.rollout_id,
        kind=kind,
        version=message.version,
        live_version=message.live_version,
        share=message.share,
        step=message.step,
        reason=message.reason,
        epoch=message.epoch,
        time=seconds(message.change_time),
        candidate=candidate_of(message.candidate) if message.HasField("candidate") else None,
        traceparent=(traceparent or "") if kind == Kind.STARTED else "",
    )


def view_message(state: LoopState, waiting: Iterable[Candidate] = ()) -> events.RolloutView:
    """Who gets which model, and which are named; `waiting` are candidates whose rollout has not begun."""
    current = state.rollouts.get(state.current)
    split = [
        events.RolloutArm(
            name=arm.name,
            version=arm.candidate.version,
            share=arm.share,
            layout=arm.candidate.layout,
            columns=arm.candidate.columns,
            run_id=arm.candidate.run_id,
        )
        for arm in arms(state)
    ]
    return events.RolloutView(
        loop=state.loop,
        epoch=state.epoch,
        arms=split,
        rollout_id=state.current,
        last_good_version=state.last_good,
        loaded_versions=state.loaded,
        change_time=timestamp(state.change_time),
        traceparent=current.traceparent if current else "",
        models=[
            events.NamedModel(version=each.version, role=events.ModelRole.ValueType(each.role), layout=each.layout)
            for each in named_models(state, waiting)
        ],
        candidates_offset=state.candidates_offset,
    )


def snapshot_message(state: LoopState, log_offset: int) -> events.RolloutSnapshot:
    """A state as a snapshot, beside the offset in the log from which on changes are newer."""
    columns = list(dict.fromkeys(rollout.candidate.columns for rollout in state.rollouts.values()))
    return events.RolloutSnapshot(
        loop=state.loop,
        epoch=state.epoch,
        log_offset=log_offset,
        candidates_offset=state.candidates_offset,
        rollout_id=state.current,
        live_version=state.live,
        last_good_version=state.last_good,
        loaded_versions=state.loaded,
        unnamed_versions=state.unnamed,
        change_time=timestamp(state.change_time),
        rollouts=[_history(state.loop, each, columns) for each in state.rollouts.values()],
        columns=[events.ColumnNames(names=each) for each in columns],
    )


def _history(loop: str, rollout: Rollout, columns: Sequence[tuple[str, ...]]) -> events.RolloutHistory:
    changes = [change_message(loop, change) for change in rollout.changes]
    del changes[0].candidate.columns[:]
    return events.RolloutHistory(
        events=changes,
        columns=columns.index(rollout.candidate.columns),
        live_version=rollout.live_version,
        observed_time=timestamp(rollout.observed_since) if rollout.observed_since else None,
        observed_epoch=rollout.observed_epoch,
        traceparent=rollout.traceparent,
    )


def state_of(message: events.RolloutSnapshot) -> LoopState:
    """The opposite of `snapshot_message`."""
    columns = [tuple(each.names) for each in message.columns]
    rollouts = [_rollout_of(history, columns) for history in message.rollouts]
    return LoopState(
        loop=message.loop,
        epoch=message.epoch,
        rollouts={rollout.id: rollout for rollout in rollouts},
        current=message.rollout_id,
        live=message.live_version,
        last_good=message.last_good_version,
        loaded=tuple(message.loaded_versions),
        unnamed=dict(message.unnamed_versions),
        change_time=seconds(message.change_time),
        candidates_offset=message.candidates_offset,
    )


def _rollout_of(history: events.RolloutHistory, columns: Sequence[tuple[str, ...]]) -> Rollout:
    first, *others = (change_of(each, history.traceparent) for each in history.events)
    if first.candidate is not None:
        first = replace(first, candidate=replace(first.candidate, columns=columns[history.columns]))
    return replace(
        rollout_of([first, *others]),
        live_version=history.live_version,
        observed_since=seconds(history.observed_time) if history.HasField("observed_time") else 0.0,
        observed_epoch=history.observed_epoch,
    )


def rollout_message(loop: str, rollout: Rollout, *, waiting_for: str = "") -> pb.Rollout:
    """A rollout with its changes; `waiting_for` says what keeps it from its next step."""
    first, last = rollout.changes[0], rollout.changes[-1]
    return pb.Rollout(
        rollout_id=rollout.id,
        loop=loop,
        version=rollout.version,
        live_version=rollout.live_version,
        state=pb.RolloutState.Value(_STATE + rollout.state),
        share=rollout.share,
        epoch=last.epoch,
        reason=waiting_for if waiting_for and rollout.is_under_way else rollout.reason,
        create_time=timestamp(first.time),
        update_time=timestamp(last.time),
        events=[change_message(loop, change) for change in rollout.changes],
    )


def report_of(message: events.GatewayReport, *, time: float) -> ObservedGateway:
    """What a gateway said, and when it came; see `ObservedGateway`."""
    return ObservedGateway(
        instance=message.instance,
        epoch=message.epoch,
        time=time,
        lease_s=message.lease_s,
        is_leaving=message.leaving,
        counts={
            each.version: VersionRequests(
                each.requests,
                each.failures,
                tuple(each.latency_bounds_s),
                tuple(each.latency_counts),
                paced=each.paced_requests,
                stalled=each.stalled_requests,
            )
            for each in message.versions
        },
        tripped=frozenset(each.version for each in message.versions if each.tripped),
        without_features={each.version: each.without_features for each in message.versions},
    )
