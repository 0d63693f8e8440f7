"""Domain objects as messages and back."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from gyre.deployer.v1 import deployer_pb2 as pb
from gyre.events.v1 import models_pb2 as events

from gyre_deployer.domain.observation import Counts, Report
from gyre_deployer.domain.projection import arms
from gyre_deployer.domain.rollouts import Candidate, Change, Kind, LoopState, Rollout

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


def view_message(state: LoopState) -> events.RolloutView:
    """Who gets which model."""
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


def report_of(message: events.GatewayReport) -> Report:
    """What a gateway said."""
    return Report(
        instance=message.instance,
        epoch=message.epoch,
        time=seconds(message.report_time),
        lease_s=message.lease_s,
        is_leaving=message.leaving,
        counts={
            each.version: Counts(each.requests, each.failures, tuple(each.latency_bounds_s), tuple(each.latency_counts))
            for each in message.versions
        },
        tripped=frozenset(each.version for each in message.versions if each.tripped),
    )
