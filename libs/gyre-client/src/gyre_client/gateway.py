"""The SDK's heart: a client of the gateway that ranks, recommends and tracks."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypedDict, TypeVar, Unpack

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.gateway.v1 import gateway_pb2 as pb
from gyre.gateway.v1 import gateway_pb2_grpc as rpc
from gyre_core.features import FieldValue
from gyre_runtime import call, channel

from gyre_client import arguments
from gyre_client.settings import ClientSettings

Request = TypeVar("Request")
Response = TypeVar("Response")
MAX_EVENTS = 1000
"""How many events one `Track` takes."""
_INTERACTION_TEXTS = ("user_id", "item_id", "type", "request_id")


class RequestOptions(TypedDict, total=False):
    """What a request may carry beside its subject.

    Keys:
        time: the request's own time, unix seconds; required on the replay clock, ignored on the wall clock.
        numbers: numbers for the loop's context features, by name.
        labels: labels for the loop's context features (device, referrer), by name; each at most 128 characters.
        request_id: the caller's id for the request, unique; made by the gateway without it.
        sampled: keep this request's trace, whatever the sampling ratio.
        timeout_s: seconds for all attempts, in place of the client's.
    """

    time: float
    numbers: Mapping[str, float]
    labels: Mapping[str, str]
    request_id: str
    sampled: bool
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Interaction:
    """Something that a user did with an item, to be given to `GyreClient.track`.

    Attributes:
        user_id: who.
        item_id: with what.
        type: one of the types that the loop declares.
        value: what goes with the type, such as a rating.
        time: unix seconds; the arrival at the gateway without it.
        request_id: the answer that led to it, where that is known.
        event_id: unique within the calling application; made here without it. One object is one event, however often
            it is tracked; a copy by `dataclasses.replace` needs another id, or `event_id=""` for a new one.
    """

    user_id: str
    item_id: str
    type: str
    value: float | None = None
    time: float | None = None
    request_id: str = ""
    event_id: str = ""

    def __post_init__(self) -> None:
        """Give the event its id, by which it counts once when a call is repeated."""
        _identify(self)


@dataclass(frozen=True, slots=True)
class Item:
    """An item with all of its fields, to be tracked: one that `fields` lacks takes its default, whatever it was before.

    `time` and `event_id` as of `Interaction`.
    """

    item_id: str
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    time: float | None = None
    event_id: str = ""

    def __post_init__(self) -> None:
        """Give the event its id, by which it counts once when a call is repeated."""
        _identify(self)


@dataclass(frozen=True, slots=True)
class User:
    """A user with all fields that are known, to be tracked: one that `fields` lacks takes its default, whatever it was.

    `time` and `event_id` as of `Interaction`.
    """

    user_id: str
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    time: float | None = None
    event_id: str = ""

    def __post_init__(self) -> None:
        """Give the event its id, by which it counts once when a call is repeated."""
        _identify(self)


class GyreClient:
    """A client of the gateway; an async context manager.

    Calls raise the `GyreError` family: `Invalid`, `NotFound`, `Unavailable`, `DeadlineExceeded` and so on. UNAVAILABLE
    is tried again within the deadline; so is `track`, whose events have ids. An argument of a wrong kind is a
    TypeError, one that cannot be sent a ValueError; nothing was sent then.

    Args:
        address: host:port of the gateway; that of the settings without it.
        settings: TLS, token and message sizes; the local stack's without it.
        token: the bearer token, in place of the settings'.
        source: the calling application, within which the ids of its events are unique, in place of the settings'.
        timeout_s: seconds for a call with all its attempts.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        settings: ClientSettings | None = None,
        token: str | None = None,
        source: str | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        chosen = settings or ClientSettings()
        self._channel = channel(
            address or chosen.gateway, chosen, name="gateway", token=token or chosen.token, follows_health=True
        )
        self._stub = rpc.GatewayServiceStub(self._channel)
        self._source = chosen.source if source is None else source
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        """Use the client; it connects with the first call."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self._channel.close()

    async def rank(
        self, loop: str, user_id: str, item_ids: Sequence[str], *, limit: int = 0, **options: Unpack[RequestOptions]
    ) -> pb.RankResponse:
        """Order candidates for a user, best first; what is answered counts as shown to them.

        Args:
            loop: the loop.
            user_id: for whom.
            item_ids: the candidates, 1 to 1,000, none twice.
            limit: how many to answer, best first; 0 answers all.
            options: see `RequestOptions`.
        """
        request = pb.RankRequest(
            loop=arguments.text("loop", loop),
            user_id=arguments.text("user_id", user_id),
            item_ids=arguments.texts("item_ids", item_ids),
            limit=arguments.count("limit", limit),
            context=_context(options),
            request_id=arguments.text("request_id", options.get("request_id", "")),
        )
        return await self._call(self._stub.Rank, request, options)

    async def recommend(
        self, loop: str, user_id: str, *, limit: int = 10, **options: Unpack[RequestOptions]
    ) -> pb.RecommendResponse:
        """Find `limit` items for a user or fewer, best first; what is answered counts as shown to them.

        `options` are those of `RequestOptions`.
        """
        request = pb.RecommendRequest(
            loop=arguments.text("loop", loop),
            user_id=arguments.text("user_id", user_id),
            limit=arguments.count("limit", limit),
            context=_context(options),
            request_id=arguments.text("request_id", options.get("request_id", "")),
        )
        return await self._call(self._stub.Recommend, request, options)

    async def track(
        self, loop: str, events: Sequence[Interaction | Item | User], *, timeout_s: float | None = None
    ) -> list[str]:
        """Send what users did and how items and users changed; returns the events' ids, in order, once Kafka has all.

        More than 1,000 events go in several calls, one after the other, each with the whole timeout. When one fails,
        the calls before it stay: track the same objects again, those that Kafka has already count once by their ids.
        """
        ids: list[str] = []
        if not isinstance(events, Iterable):
            raise arguments.wrong_kind("events", events, "must be a list of Interaction, Item and User")
        tracked = [_tracked(f"events[{index}]", event) for index, event in enumerate(events)]
        name = arguments.text("loop", loop)
        for start in range(0, len(tracked), MAX_EVENTS):
            request = pb.TrackRequest(loop=name, events=tracked[start : start + MAX_EVENTS], source=self._source)
            answer = await call(self._stub.Track, request, timeout_s=timeout_s or self._timeout_s)
            ids.extend(answer.event_ids)
        return ids

    async def _call(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, options: RequestOptions
    ) -> Response:
        metadata = (("traceparent", sampled_traceparent()),) if options.get("sampled") else ()
        timeout_s = options.get("timeout_s", self._timeout_s)
        return await call(method, request, timeout_s=timeout_s, metadata=metadata)


def _identify(event: Interaction | Item | User) -> None:
    if not event.event_id:
        object.__setattr__(event, "event_id", secrets.token_hex(16))


def sampled_traceparent() -> str:
    """A new W3C `traceparent` header value with the sampled flag: its trace is kept whatever the sampling ratio."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def timestamp(unix_s: float) -> Timestamp:
    """A time as protobuf has it, to the microsecond."""
    made = Timestamp()
    made.FromMicroseconds(round(unix_s * 1e6))
    return made


def item_changed(item_id: str, fields: Mapping[str, FieldValue]) -> behavior.ItemChanged:
    """The payload for an item with all of its fields; a field that no message can hold is a TypeError or ValueError."""
    return behavior.ItemChanged(item_id=item_id, fields=_fields(fields))


def user_changed(user_id: str, fields: Mapping[str, FieldValue]) -> behavior.UserChanged:
    """The payload for a user with all fields that are known; errors as of `item_changed`."""
    return behavior.UserChanged(user_id=user_id, fields=_fields(fields))


def _fields(fields: Mapping[str, FieldValue]) -> dict[str, behavior.FieldValue]:
    if not isinstance(fields, Mapping):
        raise arguments.wrong_kind("fields", fields, "must be a mapping of names to values")
    return {arguments.text("a name in fields", name): _field(f"fields[{name}]", each) for name, each in fields.items()}


def _field(field: str, value: FieldValue) -> behavior.FieldValue:
    if isinstance(value, bool):
        return behavior.FieldValue(boolean=value)
    if arguments.is_number(value):
        return behavior.FieldValue(number=arguments.number(field, value))
    if isinstance(value, str):
        return behavior.FieldValue(text=arguments.text(field, value))
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise arguments.wrong_kind(
            field, value, "must be a number, a truth value, a text, or a list of texts or numbers"
        )
    values = list(value)
    if all(isinstance(each, str) for each in values):
        return behavior.FieldValue(categories=behavior.Categories(values=arguments.texts(field, values)))
    numbers = [arguments.number(f"{field}[{index}]", each) for index, each in enumerate(values)]
    return behavior.FieldValue(vector=behavior.Vector(values=numbers))


def _context(options: RequestOptions) -> pb.RequestContext:
    for name in options:
        if name not in RequestOptions.__annotations__:
            raise TypeError(f"{name}: must be one of {', '.join(RequestOptions.__annotations__)}")
    time = options.get("time")
    return pb.RequestContext(
        request_time=None if time is None else timestamp(arguments.unix_time("time", time)),
        numbers=arguments.numbers_by_name("numbers", options.get("numbers", {})),
        labels=arguments.texts_by_name("labels", options.get("labels", {})),
    )


def _tracked(field: str, event: Interaction | Item | User) -> pb.TrackedEvent:
    if not isinstance(event, Interaction | Item | User):
        raise arguments.wrong_kind(field, event, "must be an Interaction, Item or User")
    try:
        return _message_of(event)
    except TypeError as error:
        raise TypeError(f"{field}.{error}") from error
    except ValueError as error:
        raise ValueError(f"{field}.{error}") from error


def _message_of(event: Interaction | Item | User) -> pb.TrackedEvent:
    tracked = pb.TrackedEvent(event_id=arguments.text("event_id", event.event_id))
    if event.time is not None:
        tracked.event_time.CopyFrom(timestamp(arguments.unix_time("time", event.time)))
    if isinstance(event, Item):
        tracked.item_changed.CopyFrom(item_changed(arguments.text("item_id", event.item_id), event.fields))
    elif isinstance(event, User):
        tracked.user_changed.CopyFrom(user_changed(arguments.text("user_id", event.user_id), event.fields))
    else:
        payload = behavior.Interaction()
        for name in _INTERACTION_TEXTS:
            setattr(payload, name, arguments.text(name, getattr(event, name)))
        if event.value is not None:
            payload.value = arguments.number("value", event.value)
        tracked.interaction.CopyFrom(payload)
    return tracked
