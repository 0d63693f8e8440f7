"""Builds a gRPC server of the mesh: wrapped methods, health, reflection, TLS and a graceful end."""

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gyre_runtime.errors import cannot_listen
from gyre_runtime.health import Health
from gyre_runtime.method_wrapper import MethodWrapper, WrappedMethod
from gyre_runtime.settings import ServerSettings
from gyre_runtime.transport_security import server_credentials

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_LOG = logging.getLogger(__name__)


class Registration(NamedTuple):
    """A servicer and the generated function that adds it: `Registration(add_XServicer_to_server, servicer)`."""

    add: Callable[[Any, Any], None]
    servicer: object


class Server:
    """A server as an async context manager, from `build_server`: listens on enter; on exit finishes calls under way.

    Entering it returns once it listens, and exiting gives calls `drain_s` before they are cancelled.

    Attributes:
        address: host:port that it listens on, with the real port, once entered.
    """

    def __init__(self, settings: ServerSettings, services: Sequence[Registration], health: Health) -> None:
        self._settings = settings
        self._services = services
        self._health = health
        self._wrapper = MethodWrapper(settings)
        self._server: grpc.aio.Server | None = None
        self.address = settings.listen

    async def __aenter__(self) -> Self:
        """Register the services and listen.

        Raises:
            Misconfigured: nobody can listen at the address, such as where it is in use (CANNOT_LISTEN).
        """
        self._server = server = grpc.aio.server(options=_options(self._settings))
        names = [name for each in self._services for name in _register(server, each, self._wrapper)]
        for name in names:
            self._health.add_service(name)
        self._health.has_callers = self._health.has_callers or bool(names)
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((*names, health_name, reflection.SERVICE_NAME), server)
        self.address = self._bind(server)
        await self._health.listen()
        await server.start()
        _LOG.info("listening", extra={"address": self.address, "services": names})
        return self

    def _bind(self, server: grpc.aio.Server) -> str:
        credentials = server_credentials(self._settings)
        listen = self._settings.listen
        try:
            port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
        except RuntimeError:
            raise cannot_listen("listen", listen) from None
        return f"{listen.rpartition(':')[0]}:{port}"

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop: NOT_SERVING, no new calls, streams end, unary calls under way get `drain_s`.

        Where callers had a delay in which to leave, what they sent before that is answered first, within `drain_s`.
        """
        await self._health.drain()
        await self._health.stop_accepting()
        if self._settings.drain_delay_s:
            await self._wrapper.until_quiet(self._settings.drain_s)
        await self._health.servicer.end_watches()
        self._wrapper.end_streams()
        if self._server is not None:
            await self._server.stop(self._settings.drain_s)
            self._server = None


def build_server(settings: ServerSettings, services: Sequence[Registration], *, health: Health | None = None) -> Server:
    """Build a server, which listens once it is entered.

    Args:
        settings: uses `listen`, TLS, token, deadline and size limits.
        services: what it serves; unary and server-streaming methods.
        health: the process's health, `lifespan.health`; without it an own one, which is NOT_SERVING until its `start`.
    """
    return Server(settings, services, health or Health())


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    ]


class _WrappedMethods(grpc.GenericRpcHandler):
    """The methods of one service: a caller without the token gets the refusal before its request is read."""

    def __init__(self, wrapper: MethodWrapper, methods: dict[str, WrappedMethod]) -> None:
        self._wrapper = wrapper
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "Handler | None":
        """Return what answers a call, None for a method of somebody else."""
        method = self._methods.get(handler_call_details.method)
        if method is None:
            return None
        admitted = self._wrapper.admits(handler_call_details.invocation_metadata or ())
        return method.handler if admitted else method.refusal


class _Recorder:
    """Stands in for a server while generated code registers, and keeps what it is given."""

    def __init__(self) -> None:
        self.methods: dict[str, dict[str, Handler]] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Take nothing: the same methods come through `add_registered_method_handlers`."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Handler]) -> None:
        """Keep the methods of a service."""
        self.methods[service] = handlers


def _register(server: grpc.aio.Server, registration: Registration, wrapper: MethodWrapper) -> list[str]:
    recorder = _Recorder()
    registration.add(registration.servicer, recorder)
    for service, handlers in recorder.methods.items():
        declared = descriptor_pool.Default().FindServiceByName(service).methods_by_name
        methods = {
            f"/{service}/{name}": wrapper.wrap(service, name, handler, declared[name].input_type)
            for name, handler in handlers.items()
        }
        server.add_generic_rpc_handlers((_WrappedMethods(wrapper, methods),))
    return list(recorder.methods)
