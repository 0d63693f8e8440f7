"""Reads messages of callers into requests and events; what breaks a rule of gyre.yaml is refused field by field."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from gyre.gateway.v1 import gateway_pb2 as pb
from gyre_core.admission import EventTimes, PartitionClock, Refusal, first_repeat, refuse_times
from gyre_core.request_ids import new_request_id
from gyre_core.shown import shown
from gyre_core.spec import LoopSpec
from gyre_privacy.masking import LoopPrivacy
from gyre_runtime import Invalid, Violation
from gyre_runtime.admission import Rules, refuse
from gyre_runtime.context import current_call
from gyre_runtime.events import Event
from gyre_runtime.fields import field_value

from gyre_gateway.domain.events import SOURCE, OutgoingEvent
from gyre_gateway.domain.requests import Method, Request

_RESERVE_S, _RESERVE_SHARE = 0.01, 0.2
_UNSET = "unset"
_OF_FIELDS = frozenset({"UNKNOWN_FIELD", "FIELD_INVALID"})
_PLACES = {
    "interaction": ("behavior.interactions", "user_id"),
    "item_changed": ("catalog.items", "item_id"),
    "user_changed": ("catalog.users", "user_id"),
}
"""Topic and key field of each payload."""


def invalid(field: str, value: object, rule: str, *, reason: str = "INVALID_FIELD") -> Invalid:
    """The error for one broken rule: `item_ids[3] = 'a': is given twice`."""
    violation = Violation(field, _UNSET if value is _UNSET else shown(value), rule)
    return Invalid(reason, str(violation), violations=[violation])


async def rank_request(spec: LoopSpec, privacy: LoopPrivacy, message: pb.RankRequest) -> Request:
    """Read a request to rank; raises Invalid."""
    item_ids = list(message.item_ids)
    most = spec.serving.max_candidates
    if len(item_ids) > most:
        raise invalid("item_ids", len(item_ids), f"must be at most {most} items")
    second = first_repeat(item_ids)
    if second is not None:
        raise invalid(f"item_ids[{second}]", item_ids[second], "is given twice")
    return await _request(spec, privacy, message, item_ids)


async def recommend_request(spec: LoopSpec, privacy: LoopPrivacy, message: pb.RecommendRequest) -> Request:
    """Read a request to recommend, whose candidates are not known yet; raises Invalid."""
    if message.limit > spec.serving.max_candidates:
        raise invalid("limit", message.limit, f"must be at most {spec.serving.max_candidates}")
    return await _request(spec, privacy, message, ())


async def _request(
    spec: LoopSpec, privacy: LoopPrivacy, message: pb.RankRequest | pb.RecommendRequest, item_ids: Sequence[str]
) -> Request:
    started = time.monotonic()
    method: Method = "rank" if isinstance(message, pb.RankRequest) else "recommend"
    return Request(
        loop=message.loop,
        user_id=privacy.user(message.user_id),
        item_ids=item_ids,
        request_id=message.request_id or new_request_id(),
        now=_request_time(spec, message.context),
        numbers=message.context.numbers,
        labels=await privacy.labels_aside(message.context.labels),
        method=method,
        started=started,
        deadline=started + _budget_s(spec),
    )


def _budget_s(spec: LoopSpec) -> float:
    """How long peers may be waited for, so that the answer leaves within the loop's deadline and the caller's."""
    call = current_call()
    whole_s = spec.serving.deadline_s if call is None else min(spec.serving.deadline_s, call.remaining_s())
    return whole_s - min(_RESERVE_S, _RESERVE_SHARE * whole_s)


def _request_time(spec: LoopSpec, context: pb.RequestContext) -> float:
    if spec.clock == "wall":
        # Whole microseconds, as an event carries it: the impression's time is the very now of the read.
        return time.time_ns() // 1000 / 1e6
    if not context.HasField("request_time"):
        raise invalid("context.request_time", _UNSET, "is required on the replay clock")
    at = _seconds(context.request_time)
    # The impression goes by the partition's clock, which only the log knows: here the present bounds it.
    refusal = refuse_times(spec, PartitionClock(), EventTimes(at, time.time(), "", is_behavior=True))
    if refusal is not None:
        time_given, rule = context.request_time.ToJsonString(), refusal.rule or refusal.detail
        raise invalid("context.request_time", time_given, rule, reason=refusal.reason)
    return at


def _seconds(moment: Timestamp) -> float:
    """Unix seconds of a time, to the whole microsecond that Kafka's events have."""
    return moment.seconds + moment.nanos // 1000 / 1e6


def tracked_event(
    spec: LoopSpec, privacy: LoopPrivacy, field: str, message: pb.TrackedEvent, *, source: str = SOURCE
) -> OutgoingEvent:
    """Read an event to track, under the path of its field, and mask it in place; raises Invalid.

    Args:
        spec: the loop.
        privacy: of the loop.
        field: the path of the event in its request.
        message: the event.
        source: its CloudEvents source.
    """
    kind = message.WhichOneof("payload")
    if kind is None:
        raise invalid(f"{field}.payload", _UNSET, "is required")
    suffix, key = _PLACES[kind]
    payload, name = getattr(message, kind), f"{spec.loop}.{suffix}"
    at, now = _event_time(spec, f"{field}.event_time", message), time.time()
    event_id = message.event_id or uuid.uuid4().hex
    raw = Event(event_id, source, payload.DESCRIPTOR.full_name, at, payload, None, name, 0, 0, arrival_time=now)
    rules = Rules({}, spec, lambda event: privacy.message(event.message))
    # A replay is only late within its own partition, whose clock the log alone knows: its consumers judge that.
    refusal = refuse(raw, rules, PartitionClock())
    if refusal is not None:
        raise _invalid_event(field, kind, message, refusal)
    return OutgoingEvent(suffix, getattr(payload, key), event_id, at, payload)


def _event_time(spec: LoopSpec, field: str, message: pb.TrackedEvent) -> float:
    """When an event happened, unix seconds; raises Invalid."""
    if message.HasField("event_time"):
        return _seconds(message.event_time)
    if spec.clock == "replay":
        raise invalid(field, _UNSET, "is required on the replay clock")
    return time.time()


def _invalid_event(field: str, kind: str, message: pb.TrackedEvent, refusal: Refusal) -> Invalid:
    """The error for a refused event: the reason that its dead letter would have, and its field."""
    path, payload = f"{field}.{kind}.{refusal.field}".removesuffix("."), getattr(message, kind)
    value: object = _UNSET
    if refusal.field == "time":
        path, value = f"{field}.event_time", message.event_time.ToJsonString()
    elif refusal.field == "ce_id":
        path, value = f"{field}.event_id", message.event_id
    elif refusal.reason in _OF_FIELDS:
        value = field_value(payload.fields[refusal.field[len("fields[") : -1]])
    elif refusal.field == "type" or (refusal.field == "value" and payload.HasField("value")):
        value = getattr(payload, refusal.field)
    return invalid(path, value, refusal.rule or refusal.detail, reason=refusal.reason)
