"""The catalogue of metrics: every name, kind, unit and label of the mesh stands here and nowhere else.

`instrument("gyre_…")` gives the instrument of a catalogue entry; a name or a label that is not in the catalogue is an
error. Whatever belongs to a loop carries the label `loop`. Add a metric by adding a line to `METRICS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from opentelemetry import metrics as otel

Kind = Literal["counter", "gauge", "histogram"]

LATENCY_BUCKETS_S = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of the catalogue.

    Attributes:
        name: its name in Prometheus, with `_total` on counters and the unit at the end where it has one.
        kind: counter, gauge or histogram.
        unit: UCUM, `1` where there is none.
        labels: exactly these are given with each value.
        description: one sentence.
        buckets: upper bounds of a histogram.
    """

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    description: str
    buckets: tuple[float, ...] = LATENCY_BUCKETS_S


METRICS: tuple[Metric, ...] = (
    # chassis
    Metric("gyre_rpc_server_seconds", "histogram", "s", ("service", "method", "code"), "Time of a call at its server."),
    Metric("gyre_rpc_client_seconds", "histogram", "s", ("peer", "method", "code"), "Time a client waited for a call."),
    Metric("gyre_rpc_client_retries_total", "counter", "1", ("peer", "method"), "Calls repeated after UNAVAILABLE."),
    Metric("gyre_dependency_up", "gauge", "1", ("dependency",), "1 when a dependency's last check passed, else 0."),
    Metric("gyre_producer_records_total", "counter", "1", ("loop", "topic"), "Records that Kafka acknowledged."),
    Metric("gyre_producer_dropped_total", "counter", "1", ("loop", "topic", "reason"), "Records that Kafka never got."),
    Metric("gyre_producer_resent_total", "counter", "1", ("loop", "topic"), "Records sent again by a new producer."),
    Metric("gyre_producer_replaced_total", "counter", "1", ("reason",), "Producers that could not go on, by error."),
    Metric("gyre_producer_queue_bytes", "gauge", "By", (), "Bytes enqueued and not yet acknowledged."),
    Metric("gyre_consumer_events_total", "counter", "1", ("loop", "topic"), "Events handled and committed."),
    Metric("gyre_consumer_retries_total", "counter", "1", ("loop", "topic", "reason"), "Batches tried again."),
    Metric("gyre_consumer_skipped_total", "counter", "1", ("loop", "topic", "reason"), "Records left out by a group."),
    Metric("gyre_loop_restarts_total", "counter", "1", ("loop",), "Times that a loop's work failed and began again."),
    Metric(
        "gyre_consumer_gone_total",
        "counter",
        "1",
        ("loop", "topic"),
        "Offsets that Kafka had deleted before a group read them.",
    ),
    Metric(
        "gyre_consumer_lag",
        "gauge",
        "1",
        ("loop", "topic", "group"),
        "Records between the consumer group's committed offset and the end.",
    ),
    Metric("gyre_dead_letters_total", "counter", "1", ("loop", "topic", "reason"), "Records dead-lettered."),
    Metric("gyre_view_unreadable_total", "counter", "1", ("loop", "topic", "reason"), "Records that a view kept out."),
    Metric(
        "gyre_task_restarts_total", "counter", "1", ("task",), "Background tasks that ended and were started again."
    ),
    Metric("gyre_topic_config_differs", "gauge", "1", ("loop", "topic"), "1 where a topic is not as it is declared."),
    Metric("gyre_privacy_masked_total", "counter", "1", ("loop", "field", "action"), "Values masked, by their rule."),
    # gateway
    Metric(
        "gyre_gateway_requests_total",
        "counter",
        "1",
        ("loop", "method", "version", "arm", "degraded"),
        "Answers by the model version and arm that gave them.",
    ),
    Metric(
        "gyre_gateway_latency_seconds",
        "histogram",
        "s",
        ("loop", "method", "version", "arm"),
        "Time from a request's arrival to its answer.",
    ),
    Metric(
        "gyre_gateway_impressions_thinned_total",
        "counter",
        "1",
        ("loop", "what"),
        "Impressions too large for their topic that were logged without some of the rest, or without features.",
    ),
    Metric("gyre_gateway_impressions_dropped_total", "counter", "1", ("loop",), "Impressions that Kafka never got."),
    # features
    Metric(
        "gyre_features_events_total",
        "counter",
        "1",
        ("loop", "layout", "topic"),
        "Events applied to the online store, by feature layout.",
    ),
    Metric(
        "gyre_features_layout_filled",
        "gauge",
        "1",
        ("loop", "layout"),
        "How much of a feature layout is filled, 0 to 1; 0 again once it is retired.",
    ),
    Metric(
        "gyre_features_duplicates_total",
        "counter",
        "1",
        ("loop", "reason"),
        "Events left out of features: DUPLICATE, of a known id; DUPLICATE_REQUEST, a request's second impression.",
    ),
    Metric(
        "gyre_features_superseded_total",
        "counter",
        "1",
        ("loop", "layout", "topic"),
        "Changes of an item's or user's fields that changed nothing, since the store held a newer one.",
    ),
    Metric(
        "gyre_features_late_fields_total",
        "counter",
        "1",
        ("loop", "outcome"),
        "Items of events whose fields were unknown (waiting), came later (came), or changed later (corrected).",
    ),
    Metric(
        "gyre_features_freshness_seconds",
        "histogram",
        "s",
        ("loop", "layout"),
        "From an event's arrival to its readability in a feature layout that is filled.",
    ),
    Metric("gyre_features_read_seconds", "histogram", "s", ("loop",), "Time of one read of the online store."),
    Metric(
        "gyre_features_parity_mismatches",
        "gauge",
        "1",
        ("loop", "layout"),
        "Served numbers that the last check of a layout refuted.",
    ),
    Metric(
        "gyre_features_parity_checked",
        "gauge",
        "1",
        ("loop", "layout"),
        "Impressions of a layout that the last check compared.",
    ),
    Metric(
        "gyre_features_parity_unknown",
        "gauge",
        "1",
        ("loop", "layout"),
        "Impressions of a layout that the last check could not judge.",
    ),
    Metric(
        "gyre_features_parity_seconds",
        "gauge",
        "s",
        ("loop", "layout"),
        "How long the last check of a layout took.",
    ),
    Metric(
        "gyre_features_parity_rows",
        "gauge",
        "1",
        ("loop", "layout", "table"),
        "Rows of a table that the last check of a layout read.",
    ),
    Metric(
        "gyre_features_parity_unreadable_rows",
        "gauge",
        "1",
        ("loop", "layout", "table"),
        "Rows of a table that the last check of a layout set aside, since nobody can read them.",
    ),
    Metric(
        "gyre_archive_refused_rows_total",
        "counter",
        "1",
        ("loop", "topic", "reason"),
        "Events that their table cannot hold, set aside in refused_rows.",
    ),
    Metric(
        "gyre_warehouse_read_rows_total", "counter", "1", ("loop", "table"), "Rows read to fill a layout's features."
    ),
    Metric(
        "gyre_warehouse_unreadable_rows_total",
        "counter",
        "1",
        ("loop", "table"),
        "Rows set aside while a layout's features were filled, since no event can be made of them.",
    ),
    Metric("gyre_archive_rows_total", "counter", "1", ("loop", "table"), "Rows appended to the warehouse."),
    Metric("gyre_quality_windows_total", "counter", "1", ("loop", "topic"), "Quality windows published, each time."),
    Metric("gyre_quality_live_value", "gauge", "1", ("loop", "check"), "What a check of the live stream last found."),
    Metric("gyre_quality_live_failing", "gauge", "1", ("loop", "check"), "1 while a check of the live stream fails."),
    # inference
    Metric(
        "gyre_inference_predict_seconds",
        "histogram",
        "s",
        ("loop", "version"),
        "Time of a prediction in Triton.",
    ),
    Metric("gyre_inference_refused_total", "counter", "1", ("loop", "reason"), "Predictions refused."),
    # trainer
    Metric("gyre_trainer_runs_total", "counter", "1", ("loop", "state"), "Training runs that reached a state."),
    Metric("gyre_trainer_ndcg", "gauge", "1", ("loop", "version"), "NDCG@10 of a version on its holdout."),
    Metric(
        "gyre_trainer_erasures_failed_total",
        "counter",
        "1",
        ("loop",),
        "Attempts to erase what a run left of a forgotten user that the file system or MLflow did not take.",
    ),
    Metric("gyre_quality_check_value", "gauge", "1", ("loop", "check"), "What a check last found, its worst column."),
    Metric("gyre_quality_failures_total", "counter", "1", ("loop", "check", "action"), "Runs in which a check failed."),
    Metric("gyre_quality_quarantined_total", "counter", "1", ("loop", "rows"), "Rows left out of training, by kind."),
    # deployer
    Metric("gyre_deployer_rollouts_total", "counter", "1", ("loop", "state"), "Rollouts that reached a state."),
    Metric("gyre_deployer_share", "gauge", "1", ("loop", "version", "arm"), "Share of traffic of a version."),
    Metric("gyre_deployer_warmup_seconds", "histogram", "s", ("loop", "version"), "Time of a warm-up request."),
    Metric("gyre_deployer_reloads_total", "counter", "1", ("loop",), "Versions that Triton had lost and holds again."),
    # monitor
    Metric("gyre_monitor_ctr", "gauge", "1", ("loop", "version", "arm"), "Share of answers that were clicked."),
    Metric("gyre_monitor_conversion", "gauge", "1", ("loop", "version", "arm"), "Share of answers that converted."),
    Metric("gyre_monitor_degraded", "gauge", "1", ("loop", "version", "arm"), "Share of answers that were degraded."),
    Metric("gyre_monitor_triggers_total", "counter", "1", ("loop", "reason"), "Training triggers sent."),
    Metric("gyre_monitor_spans_total", "counter", "1", ("outcome",), "Spans that were received: stored or refused."),
    Metric(
        "gyre_monitor_latency_seconds",
        "gauge",
        "s",
        ("loop", "version", "arm", "quantile"),
        "Latency of answers.",
    ),
)

_BY_NAME = {metric.name: metric for metric in METRICS}


class Instrument:
    """One metric to write to, from `instrument`; a write stays in the process until `/metrics` is read.

    `add`, `observe` and `set` belong to counters, histograms and gauges: another one raises TypeError. Labels are
    checked on every call: those of the catalogue's entry, no fewer and no more, else ValueError.
    """

    __slots__ = ("_record", "metric")

    def __init__(self, metric: Metric, record: Callable[[float, dict[str, str]], None]) -> None:
        self.metric = metric
        self._record = record

    def add(self, amount: float = 1, /, **labels: str) -> None:
        """Add an amount, 0 or more, to the counter of these labels."""
        self._write("counter", amount, labels)

    def observe(self, value: float, /, **labels: str) -> None:
        """Put a value, in the metric's unit, into the histogram of these labels."""
        self._write("histogram", value, labels)

    def set(self, value: float, /, **labels: str) -> None:
        """Set the gauge of these labels to a value, which it shows until it is set again."""
        self._write("gauge", value, labels)

    def _write(self, kind: Kind, value: float, labels: dict[str, str]) -> None:
        if kind != self.metric.kind:
            raise TypeError(f"{self.metric.name} is a {self.metric.kind}, not a {kind}")
        if labels.keys() != set(self.metric.labels):
            raise ValueError(f"{self.metric.name} takes the labels {self.metric.labels}, not {tuple(labels)}")
        self._record(value, labels)

    def bind(self, **labels: str) -> Callable[[float], None]:
        """Check the labels once and return a function that writes values as the metric's kind does, for hot paths.

        Raises:
            ValueError: the labels are not those of the catalogue.
        """
        if labels.keys() != set(self.metric.labels):
            raise ValueError(f"{self.metric.name} takes the labels {self.metric.labels}, not {tuple(labels)}")
        record = self._record
        return lambda value: record(value, labels)


@cache
def instrument(name: str) -> Instrument:
    """Return the instrument of a catalogue entry, the same one each time; it adds no metric to the catalogue.

    Raises:
        KeyError: the catalogue has no such metric.
    """
    metric = _BY_NAME.get(name)
    if metric is None:
        raise KeyError(f"{name} is not in the catalogue of gyre_runtime.metrics")
    return Instrument(metric, _recorder(metric))


def _recorder(metric: Metric) -> Callable[[float, dict[str, str]], None]:
    meter = otel.get_meter("gyre")
    if metric.kind == "counter":
        return meter.create_counter(metric.name, metric.unit, metric.description).add
    if metric.kind == "gauge":
        return meter.create_gauge(metric.name, metric.unit, metric.description).set
    return meter.create_histogram(
        metric.name, metric.unit, metric.description, explicit_bucket_boundaries_advisory=metric.buckets
    ).record
