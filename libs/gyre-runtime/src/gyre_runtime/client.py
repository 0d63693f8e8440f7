"""Channels to the peers of the mesh: token, trace context, deadline, metrics and rebuilt errors on every call.

The stubs that protoc generates work on such a channel unchanged; unary and server-streaming calls raise `GyreError`
in place of `AioRpcError`, and refuse to start without a deadline.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from gyre_runtime import tracing
from gyre_runtime.context import CURRENT_CALL
from gyre_runtime.errors import DeadlineExceeded, Unavailable, from_rpc_error
from gyre_runtime.health import ACCEPTING
from gyre_runtime.method_wrapper import REQUEST_ID
from gyre_runtime.metrics import instrument
from gyre_runtime.settings import ChannelSettings
from gyre_runtime.transport_security import channel_credentials, read_token

_MARGIN_S = 0.002
_BACKOFF_S = 0.02
Metadata = tuple[tuple[str, Any], ...]


@dataclass
class RetryBudget:
    """Bounds the retries on a channel to a share of its calls: a failing peer is not hit harder than a healthy one.

    A token bucket (https://sre.google/sre-book/handling-overload/): each call earns `ratio`, each retry costs 1. It
    starts with 10 tokens, holds at most `capacity`, and time adds none.
    """

    ratio: float = 0.1
    capacity: float = 20.0
    _tokens: float = field(default=10.0, init=False)

    def earn(self) -> None:
        """Add `ratio` for a call, up to `capacity`."""
        self._tokens = min(self.capacity, self._tokens + self.ratio)

    def spend(self) -> bool:
        """Take one token for a retry and return True; False, with nothing taken, where less than one is left."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


Request = TypeVar("Request")
Response = TypeVar("Response")


async def call(
    method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
    request: Request,
    *,
    timeout_s: float,
    attempts: int = 3,
    metadata: Metadata = (),
) -> Response:
    """Call a unary method within a time that covers all attempts and ends before the incoming call's.

    UNAVAILABLE alone is tried again, after a short pause, while the channel's `RetryBudget` allows it.

    Args:
        method: a method of a stub on a `channel`.
        request: its request message.
        timeout_s: seconds for all attempts together.
        attempts: calls at most; 1 for what must not be sent twice.
        metadata: what goes along beside token, trace context and request id; a name given here stands.

    Raises:
        GyreError: as the server raised it, or Unavailable, or DeadlineExceeded.
        ValueError: `attempts` is less than 1.
    """
    unary: UnaryCall = method  # type: ignore[assignment]  # what a stub on a `channel` holds
    deadline = time.monotonic() + timeout_s
    unary.budget.earn()
    for attempt in range(1, attempts + 1):
        try:
            response: Response = await unary(request, timeout=deadline - time.monotonic(), metadata=metadata)
            return response
        except Unavailable:
            pause_s = _BACKOFF_S * 2**attempt * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            late = time.monotonic() + pause_s >= deadline
            if attempt == attempts or late or not unary.budget.spend():
                raise
            unary.count_retry()
            await asyncio.sleep(pause_s)
    raise ValueError("attempts must be at least 1")


def channel(
    address: str, settings: ChannelSettings, *, name: str, token: str | None = None, follows_health: bool = False
) -> "Channel":
    """Open a channel to a peer; it connects by itself, now or whenever the peer comes up.

    Args:
        address: host:port.
        settings: uses TLS, token and size limits.
        name: the peer's name in metrics.
        token: the bearer token; that of the settings' file by default.
        follows_health: calls go only to processes of the mesh that accept calls: not to one that was never ready yet,
            nor to one that drains (client-side health checking, https://grpc.io/docs/guides/health-checking/).

    Raises:
        Misconfigured: a file of TLS or token cannot be used; that the peer is away is no error here.
    """
    credentials, options = channel_credentials(settings), channel_options(settings, follows_health=follows_health)
    if credentials is None:
        inner = grpc.aio.insecure_channel(address, options=options)
    else:
        inner = grpc.aio.secure_channel(address, credentials, options=options)
    return Channel(inner, name=name, token=read_token(settings.token_file) if token is None else token)


def channel_options(settings: ChannelSettings, *, follows_health: bool = False) -> list[tuple[str, Any]]:
    """The options that `channel` opens gRPC's own channels with: sizes, keepalive, reconnects, round robin; no TLS."""
    service_config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if follows_health:
        service_config["healthCheckConfig"] = {"serviceName": ACCEPTING}
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # In spite of its name the time that one attempt to connect may take: a busy peer needs more than the backoff.
        ("grpc.min_reconnect_backoff_ms", 2000),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.keepalive_time_ms", 20000),
        ("grpc.service_config", json.dumps(service_config)),
        ("grpc.enable_http_proxy", 0),
    ]


class _Outgoing:
    """What the calls of one method on one channel share: metadata, deadline, metrics."""

    def __init__(self, method: str, *, peer: str, authorization: Metadata) -> None:
        self.method = method
        self._labels = {"peer": peer, "method": method.rpartition("/")[2]}
        self._authorization = authorization
        self._seconds: dict[str, Callable[[float], None]] = {}

    def metadata(self, given: Any) -> Metadata:
        """What the caller gives, and the token.

        The trace context and the incoming call's request id where it gives none.
        """
        added, names = self._authorization, {name for name, _ in given} if given else ()
        traceparent, incoming = tracing.current_traceparent(), CURRENT_CALL.get()
        if traceparent and tracing.TRACEPARENT not in names:
            added = (*added, (tracing.TRACEPARENT, traceparent))
        if incoming is not None and REQUEST_ID not in names:
            added = (*added, (REQUEST_ID, incoming.request_id))
        return (*given, *added) if given else added

    def effective_s(self, timeout_s: float | None) -> float:
        """Return the seconds a call may take: what it asks for, but less than what the incoming call has left.

        Raises:
            ValueError: None outside of an incoming call.
            DeadlineExceeded: the incoming call has no time left.
        """
        incoming = CURRENT_CALL.get()
        if incoming is None:
            if timeout_s is None:
                raise ValueError(f"{self.method} needs a timeout: every call of the mesh has a deadline")
            return timeout_s
        left_s = incoming.remaining_s() - _MARGIN_S
        effective_s = left_s if timeout_s is None else min(left_s, timeout_s)
        if effective_s <= 0:
            raise DeadlineExceeded("DEADLINE_EXCEEDED", "no time is left for the call")
        return effective_s

    def observe(self, code: str, started: float) -> None:
        """Record a call's status, and its time since `started` (of `perf_counter`), in `gyre_rpc_client_seconds`."""
        seconds = self._seconds.get(code)
        if seconds is None:
            seconds = self._seconds[code] = instrument("gyre_rpc_client_seconds").bind(**self._labels, code=code)
        seconds(time.perf_counter() - started)

    def count_retry(self) -> None:
        """Count a repeated call in the metric `gyre_rpc_client_retries_total`."""
        instrument("gyre_rpc_client_retries_total").add(**self._labels)


class UnaryCall(_Outgoing):
    """A unary method of a stub: answers the response or raises a `GyreError`.

    It calls once: what repeats is the function `call`. Without a timeout outside of an incoming call: ValueError.
    """

    def __init__(self, inner: Any, budget: RetryBudget, method: str, *, peer: str, authorization: Metadata) -> None:
        super().__init__(method, peer=peer, authorization=authorization)
        self._inner = inner
        self.budget = budget

    async def __call__(self, request: Any, *, timeout: float | None = None, metadata: Any = None, **more: Any) -> Any:  # noqa: ASYNC109
        """Call once."""
        started, code = time.perf_counter(), "OK"
        try:
            timeout_s = self.effective_s(timeout)
            return await self._inner(request, timeout=timeout_s, metadata=self.metadata(metadata), **more)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            self.observe(code, started)


class StreamCall(_Outgoing):
    """A server-streaming method of a stub: iterates over the responses or raises a `GyreError`.

    It calls once, and its timeout is that of the whole stream, as in `UnaryCall`.
    """

    def __init__(self, inner: Any, method: str, *, peer: str, authorization: Metadata) -> None:
        super().__init__(method, peer=peer, authorization=authorization)
        self._inner = inner

    async def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - gRPC's name
        metadata: Any = None,
        **more: Any,
    ) -> AsyncIterator[Any]:
        """Call, and iterate."""
        started, code = time.perf_counter(), "OK"
        try:
            timeout_s = self.effective_s(timeout)
            async for response in self._inner(request, timeout=timeout_s, metadata=self.metadata(metadata), **more):
                yield response
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            raise from_rpc_error(error) from None
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        finally:
            self.observe(code, started)


class Channel(grpc.aio.Channel):
    """A `grpc.aio.Channel`, as `channel` opens it, for the stubs that protoc generates.

    Each unary or server-streaming call takes token, traceparent and the incoming call's request id along, ends before
    the incoming call's deadline, is measured, and raises a `GyreError` in place of `AioRpcError`. It goes out once: the
    function `call` repeats. Outside of an incoming call one without a timeout raises ValueError. Client-streaming calls
    are gRPC's own.

    Args:
        inner: the channel of gRPC that carries the calls.
        name: the peer's name in metrics.
        token: the bearer token; empty for none.
    """

    def __init__(self, inner: grpc.aio.Channel, *, name: str, token: str) -> None:
        self._inner = inner
        self._name = name
        self._authorization: Metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._budget = RetryBudget()

    async def __aenter__(self) -> Self:
        """Use the channel."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the channel."""
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close the channel; calls under way are cancelled after `grace` seconds, at once without it."""
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002, RUF100
        """Return the connectivity of gRPC's channel beneath."""
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait, without limit, until the connectivity is another one than `last_observed_state`."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Connect, and wait without limit until the peer is connected."""
        await self._inner.channel_ready()

    def unary_unary(self, method: str, *serializers: Any, **options: Any) -> Any:
        """Return the `UnaryCall` of a method's full path; nothing is called yet."""
        inner = self._inner.unary_unary(method, *serializers, **options)
        return UnaryCall(inner, self._budget, method, peer=self._name, authorization=self._authorization)

    def unary_stream(self, method: str, *serializers: Any, **options: Any) -> Any:
        """Return the `StreamCall` of a method's full path; nothing is called yet."""
        inner = self._inner.unary_stream(method, *serializers, **options)
        return StreamCall(inner, method, peer=self._name, authorization=self._authorization)

    def stream_unary(self, method: str, *serializers: Any, **options: Any) -> Any:
        """Return gRPC's own callable: the mesh has no client-streaming method."""
        return self._inner.stream_unary(method, *serializers, **options)

    def stream_stream(self, method: str, *serializers: Any, **options: Any) -> Any:
        """Return gRPC's own callable: reflection alone streams both ways."""
        return self._inner.stream_stream(method, *serializers, **options)
