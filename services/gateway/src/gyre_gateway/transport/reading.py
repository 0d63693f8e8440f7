"""Reads messages of callers into requests and events; what breaks a rule of gyre.yaml is refused field by field."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.gateway.v1 import gateway_pb2 as pb
from gyre_core.admission import Refusal, refuse_fields, refuse_interaction, refuse_time
from gyre_core.clock import LoopClock
from gyre_core.spec import LoopSpec
from gyre_privacy.masking import LoopPrivacy
from gyre_runtime import Invalid, Violation
from gyre_runtime.context import current_call
from gyre_runtime.fields import field_value

from gyre_gateway.domain.events import Event
from gyre_gateway.domain.requests import Method, Request

_SHOWN_CHARS = 64
_FIRST_S, _END_S = -62_135_596_800, 253_402_300_800
_RESERVE_S, _RESERVE_SHARE = 0.01, 0.2
_UNSET = "unset"


def invalid(field: str, value: object, rule: str) -> Invalid:
    """The error for one broken rule: `item_ids[3] = 'a': is given twice`."""
    shown = value if value is _UNSET else repr(value)[:_SHOWN_CHARS]
    violation = Violation(field, str(shown), rule)
    return Invalid("INVALID_FIELD", str(violation), violations=[violation])


def rank_request(spec: LoopSpec, privacy: LoopPrivacy, message: pb.RankRequest) -> Request:
    """Read a request to rank; raises Invalid."""
    item_ids = list(message.item_ids)
    most = spec.serving.max_candidates
    if len(item_ids) > most:
        raise invalid("item_ids", len(item_ids), f"must be at most {most} items")
    if len(set(item_ids)) != len(item_ids):
        twice = next(item for item, count in Counter(item_ids).items() if count > 1)
        second = item_ids.index(twice, item_ids.index(twice) + 1)
        raise invalid(f"item_ids[{second}]", twice, "is given twice")
    return _request(spec, privacy, message, item_ids)


def recommend_request(spec: LoopSpec, privacy: LoopPrivacy, message: pb.RecommendRequest) -> Request:
    """Read a request to recommend, whose candidates are not known yet; raises Invalid."""
    if message.limit > spec.serving.max_candidates:
        raise invalid("limit", message.limit, f"must be at most {spec.serving.max_candidates}")
    return _request(spec, privacy, message, ())


def _request(
    spec: LoopSpec, privacy: LoopPrivacy, message: pb.RankRequest | pb.RecommendRequest, item_ids: Sequence[str]
) -> Request:
    started = time.monotonic()
    method: Method = "rank" if isinstance(message, pb.RankRequest) else "recommend"
    return Request(
        loop=message.loop,
        user_id=privacy.user(message.user_id),
        item_ids=item_ids,
        request_id=message.request_id or uuid.uuid4().hex,
        now=_request_time(spec, message.context),
        numbers=message.context.numbers,
        labels=privacy.labels(message.context.labels),
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
    return _seconds("context.request_time", context.request_time)


def _seconds(field: str, moment: Timestamp) -> float:
    """Unix seconds of a time that the year has four digits of; raises Invalid."""
    if not _FIRST_S <= moment.seconds < _END_S or not 0 <= moment.nanos < 1_000_000_000:
        raise invalid(field, moment.seconds, "must be a time from year 1 to 9999")
    return moment.seconds + moment.nanos / 1e9


def tracked_event(spec: LoopSpec, privacy: LoopPrivacy, field: str, message: pb.TrackedEvent) -> Event:
    """Read an event to track, under the path of its field, and mask it in place; raises Invalid."""
    kind = message.WhichOneof("payload")
    if kind is None:
        raise invalid(f"{field}.payload", _UNSET, "is required")
    at = _event_time(spec, f"{field}.event_time", message, timely=kind == "interaction")
    event_id = message.event_id or uuid.uuid4().hex
    if kind == "interaction":
        interaction = message.interaction
        privacy.message(interaction)
        _require_interaction(spec, f"{field}.interaction", interaction)
        return Event("behavior.interactions", interaction.user_id, event_id, at, interaction)
    if kind == "user_changed":
        user = message.user_changed
        privacy.message(user)
        _require_fields(spec, "user", f"{field}.user_changed.fields", user)
        return Event("catalog.users", user.user_id, event_id, at, user)
    item = message.item_changed
    privacy.message(item)
    _require_fields(spec, "item", f"{field}.item_changed.fields", item)
    return Event("catalog.items", item.item_id, event_id, at, item)


def _event_time(spec: LoopSpec, field: str, message: pb.TrackedEvent, *, timely: bool) -> float:
    """When an event happened; what users do, unlike the catalogue, must be neither too old nor in the future."""
    if not message.HasField("event_time"):
        if spec.clock == "replay":
            raise invalid(field, _UNSET, "is required on the replay clock")
        return time.time()
    at = _seconds(field, message.event_time)
    # A replay is only late within its own stream, which its consumers judge: here its clock stands at the beginning.
    refusal = refuse_time(spec, LoopClock(spec.clock, start=at), at) if timely else None
    if refusal is not None:
        raise invalid(field, message.event_time.ToJsonString(), _rule(refusal))
    return at


def _require_interaction(spec: LoopSpec, field: str, interaction: behavior.Interaction) -> None:
    value = interaction.value if interaction.HasField("value") else None
    refusal = refuse_interaction(spec, interaction.type, value)
    if refusal is None:
        return
    if refusal.reason == "UNKNOWN_TYPE":
        raise invalid(f"{field}.type", interaction.type, _rule(refusal))
    raise invalid(f"{field}.value", _UNSET if value is None else value, _rule(refusal))


def _require_fields(
    spec: LoopSpec, scope: str, field: str, changed: behavior.ItemChanged | behavior.UserChanged
) -> None:
    for name, message in changed.fields.items():
        value = field_value(message)
        refusal = refuse_fields(spec, scope, {name: value})
        if refusal is not None:
            raise invalid(f"{field}[{name}]", value, _rule(refusal))


def _rule(refusal: Refusal) -> str:
    """The rule alone: a refusal's detail begins with the field and the value."""
    return refusal.detail.rpartition(": ")[2]
