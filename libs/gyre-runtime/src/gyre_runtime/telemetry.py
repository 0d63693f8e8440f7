"""Turns on logs, traces and metrics for a process: JSON lines on stderr, OTLP spans, Prometheus on /metrics."""

import logging
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server
from pythonjsonlogger.json import JsonFormatter

from gyre_runtime.errors import cannot_listen
from gyre_runtime.settings import TelemetrySettings
from gyre_runtime.tracing import FlowSampler

_EXPORT_DELAY_MS = 500
_EXPORT_TIMEOUT_S = 3
_QUIET = ("aiokafka", "opentelemetry", "asyncio", "urllib3", "grpc")


@dataclass
class Telemetry:
    """What `setup_telemetry` started.

    Attributes:
        service: name in logs, spans and metrics.
        tracer_provider: to add span processors to, in tests.
        registry: the Prometheus registry behind /metrics.
        metrics_address: host:port of /metrics, empty when it is off.
    """

    service: str
    tracer_provider: TracerProvider
    registry: CollectorRegistry
    metrics_address: str = ""
    _server: Any = None
    _thread: threading.Thread | None = None

    def shutdown(self) -> None:
        """Send the spans that are left, for at most 3 s, and stop answering /metrics; unsent spans are lost."""
        self.tracer_provider.force_flush(timeout_millis=_EXPORT_TIMEOUT_S * 1000)
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None


_INSTALLED: list[Telemetry] = []


def setup_telemetry(service_name: str, settings: TelemetrySettings) -> Telemetry:
    """Start logs, traces and metrics; OpenTelemetry allows this once a process.

    A later call changes nothing and returns what the first one did, whatever its arguments.

    Args:
        service_name: such as `gateway` or `features-stream`.
        settings: uses `log_level`, `otlp`, `trace_ratio` and `metrics_listen`.

    Raises:
        Misconfigured: nobody can listen at `metrics_listen` (CANNOT_LISTEN).
    """
    if _INSTALLED:
        return _INSTALLED[0]
    setup_logging(service_name, settings.log_level)
    resource = Resource.create({"service.name": service_name, "service.namespace": "gyre"})
    tracers = TracerProvider(sampler=FlowSampler(settings.trace_ratio), resource=resource, shutdown_on_exit=False)
    if settings.otlp:
        exporter = OTLPSpanExporter(endpoint=settings.otlp, insecure=True, timeout=_EXPORT_TIMEOUT_S)
        tracers.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_EXPORT_DELAY_MS))
    trace.set_tracer_provider(tracers)
    telemetry = Telemetry(service_name, tracers, _start_metrics(resource))
    _INSTALLED.append(telemetry)
    if settings.metrics_listen:
        _expose(telemetry, settings.metrics_listen)
    return telemetry


def _start_metrics(resource: Resource) -> CollectorRegistry:
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    reader = PrometheusMetricReader(registry=registry, scope_info_enabled=False)
    metrics.set_meter_provider(MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False))
    return registry


def _expose(telemetry: Telemetry, listen: str) -> None:
    host, _, port = listen.rpartition(":")
    try:
        server, thread = start_http_server(int(port), addr=host, registry=telemetry.registry)
    except OSError:
        raise cannot_listen("metrics_listen", listen) from None
    telemetry.metrics_address = f"{host}:{server.server_port}"
    telemetry._server, telemetry._thread = server, thread  # noqa: SLF001 - the handle of this module
    logging.getLogger(__name__).info("metrics listening", extra={"address": telemetry.metrics_address})


class _ContextFilter(logging.Filter):
    """Adds service, trace and span ids to each record."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def filter(self, record: logging.LogRecord) -> bool:
        """Stamp a record; never drops one."""
        span = trace.get_current_span().get_span_context()
        record.service = self._service
        if span.is_valid:
            record.trace_id, record.span_id = f"{span.trace_id:032x}", f"{span.span_id:016x}"
        return True


def setup_logging(service_name: str, level: str) -> None:
    """Write every log record as one JSON line on stderr, for the whole process; give facts in `extra`, never payloads.

    Other handlers of the root logger are removed. Libraries such as aiokafka and gRPC are written from WARNING on.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            datefmt="%Y-%m-%dT%H:%M:%S%z",
        )
    )
    handler.addFilter(_ContextFilter(service_name))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    _quiet(_QUIET)


def _quiet(names: Iterable[str]) -> None:
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
