"""Channels to the peers of the mesh: token, trace context, deadline, metrics and rebuilt errors on every call.

The stubs that protoc generates work on such a channel unchanged; unary and server-streaming calls raise `GyreError`
in place of `AioRpcError`, and refuse to start without a deadline.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc

from gyre_runtime import tracing
from gyre_runtime.context import CURRENT_CALL
from gyre_runtime.errors import DeadlineExceeded, GyreError, Unavailable, from_rpc_error
from gyre_runtime.interceptor import REQUEST_ID
from gyre_runtime.metrics import instrument
from gyre_runtime.settings import ServiceSettings
from gyre_runtime.transport_security import channel_credentials, read_token

_MARGIN_S = 0.002
_BACKOFF_S = 0.02


@dataclass
class RetryBudget:
    """Bounds retries to a share of the calls, so that a failing peer is not hit harder than a healthy one.

    A token bucket (https://sre.google/sre-book/handling-overload/): each call earns `ratio`, each retry costs 1.
    """

    ratio: float = 0.1
    most: float = 20.0
    _tokens: float = field(default=10.0, init=False)

    def earn(self) -> None:
        """Note a call."""
        self._tokens = min(self.most, self._tokens + self.ratio)

    def spend(self) -> bool:
        """Take a retry, if one is left."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


@dataclass(frozen=True)
class Retry:
    """How often UNAVAILABLE is tried again, and from which budget.

    Attributes:
        attempts: calls in all; 1 means no retry.
        budget: shared by every call that may exhaust it together.
    """

    attempts: int = 3
    budget: RetryBudget = field(default_factory=RetryBudget)


DEFAULT_RETRY = Retry()
NO_RETRY = Retry(attempts=1)


async def call(method: Any, request: Any, *, timeout_s: float, retry: Retry = DEFAULT_RETRY) -> Any:
    """Call a unary method within a time that covers all attempts and ends before the incoming call's.

    Args:
        method: a method of a stub on a `channel`.
        request: its request message.
        timeout_s: seconds for all attempts together.
        retry: for UNAVAILABLE; `NO_RETRY` for what must not be sent twice.

    Raises:
        GyreError: as the server raised it, or Unavailable, or DeadlineExceeded.
    """
    deadline = time.monotonic() + timeout_s
    retry.budget.earn()
    for attempt in range(1, retry.attempts + 1):
        try:
            return await method(request, timeout=deadline - time.monotonic())
        except Unavailable:
            pause_s = _BACKOFF_S * 2**attempt * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            late = time.monotonic() + pause_s >= deadline
            if attempt >= retry.attempts or late or not retry.budget.spend():
                raise
            instrument("gyre_rpc_client_retries_total").add(method=getattr(method, "__name__", "unary"))
            await asyncio.sleep(pause_s)
    raise AssertionError("unreachable: the last attempt returns or raises")


def channel(address: str, settings: ServiceSettings, *, name: str) -> "Channel":
    """Open a channel to a peer; it connects by itself, now or whenever the peer comes up.

    Args:
        address: host:port.
        settings: uses TLS, token and size limits.
        name: the peer's name in metrics.
    """
    credentials = channel_credentials(settings)
    if credentials is None:
        inner = grpc.aio.insecure_channel(address, options=_options(settings))
    else:
        inner = grpc.aio.secure_channel(address, credentials, options=_options(settings))
    return Channel(inner, name=name, token=read_token(settings.token_file))


def _options(settings: ServiceSettings) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.keepalive_time_ms", 20000),
        ("grpc.lb_policy_name", "round_robin"),
        ("grpc.enable_http_proxy", 0),
    ]


class Channel(grpc.aio.Channel):
    """A `grpc.aio.Channel` whose unary and server-streaming calls follow the rules of the mesh."""

    def __init__(self, inner: grpc.aio.Channel, *, name: str, token: str) -> None:
        self._inner = inner
        self._name = name
        self._authorization = (("authorization", f"Bearer {token}"),) if token else ()

    async def __aenter__(self) -> Self:
        """Use the channel."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the channel."""
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close the channel; calls under way are cancelled after `grace` seconds."""
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002, RUF100
        """Return the connectivity."""
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait for another connectivity."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until the peer is connected."""
        await self._inner.channel_ready()

    def unary_unary(self, method: str, *serializers: Any, **options: Any) -> Any:
        """Return a callable that answers the response or raises a `GyreError`."""
        inner, observe = self._inner.unary_unary(method, *serializers, **options), self._observer(method)

        async def invoke(request: Any, *, timeout: float | None = None, metadata: Any = (), **more: Any) -> Any:  # noqa: ASYNC109
            started, code = time.perf_counter(), "OK"
            try:
                timeout_s = _effective(timeout, method)
                return await inner(request, timeout=timeout_s, metadata=self._metadata(metadata), **more)
            except grpc.aio.AioRpcError as error:
                code = error.code().name
                raise from_rpc_error(error) from None
            except GyreError as error:
                code = error.code.name
                raise
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            finally:
                observe(code, started)

        return invoke

    def unary_stream(self, method: str, *serializers: Any, **options: Any) -> Any:
        """Return a callable that iterates over the responses or raises a `GyreError`."""
        inner, observe = self._inner.unary_stream(method, *serializers, **options), self._observer(method)

        async def invoke(
            request: Any,
            *,
            timeout: float | None = None,  # noqa: ASYNC109 - gRPC's name
            metadata: Any = (),
            **more: Any,
        ) -> AsyncIterator[Any]:
            started, code = time.perf_counter(), "OK"
            try:
                timeout_s = _effective(timeout, method)
                async for response in inner(request, timeout=timeout_s, metadata=self._metadata(metadata), **more):
                    yield response
            except grpc.aio.AioRpcError as error:
                code = error.code().name
                raise from_rpc_error(error) from None
            finally:
                observe(code, started)

        return invoke

    def stream_unary(self, method: str, *serializers: Any, **options: Any) -> Any:
        """Return gRPC's own callable: the mesh has no client-streaming method."""
        return self._inner.stream_unary(method, *serializers, **options)

    def stream_stream(self, method: str, *serializers: Any, **options: Any) -> Any:
        """Return gRPC's own callable: reflection alone streams both ways."""
        return self._inner.stream_stream(method, *serializers, **options)

    def _metadata(self, given: Any) -> tuple[tuple[str, Any], ...]:
        """Add token, trace context and request id to what the caller gives."""
        given = tuple(given or ())
        added: tuple[tuple[str, Any], ...] = self._authorization
        names = {name for name, _ in given}
        traceparent, incoming = tracing.inject(), CURRENT_CALL.get()
        if traceparent and tracing.TRACEPARENT not in names:
            added = (*added, (tracing.TRACEPARENT, traceparent))
        if incoming is not None and REQUEST_ID not in names:
            added = (*added, (REQUEST_ID, incoming.request_id))
        return (*given, *added)

    def _observer(self, method: str) -> Callable[[str, float], None]:
        labels = {"peer": self._name, "method": method.rpartition("/")[2]}
        bound: dict[str, Callable[[float], None]] = {}

        def observe(code: str, started: float) -> None:
            if code not in bound:
                bound[code] = instrument("gyre_rpc_client_seconds").bind(**labels, code=code)
            bound[code](time.perf_counter() - started)

        return observe


def _effective(timeout_s: float | None, method: str) -> float:
    """Return the time a call may take: what it asks for, but less than what the incoming call has left."""
    incoming = CURRENT_CALL.get()
    if timeout_s is None and incoming is None:
        raise ValueError(f"{method} needs a timeout: every call of the mesh has a deadline")
    left = incoming.remaining_s() - _MARGIN_S if incoming is not None else float("inf")
    timeout_s = min(left, timeout_s if timeout_s is not None else float("inf"))
    if timeout_s <= 0:
        raise DeadlineExceeded("DEADLINE_EXCEEDED", "no time is left for the call")
    return timeout_s
