"""Decodes questions, reads the database, encodes the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from google.protobuf.timestamp_pb2 import Timestamp
from gyre.events.v1 import monitor_pb2 as events
from gyre.monitor.v1 import monitor_pb2 as pb
from gyre.monitor.v1 import monitor_pb2_grpc as rpc
from gyre_core.spec import LoopSpec
from gyre_runtime import NotFound, unknown_loop
from gyre_runtime.admission import RefusalCount, StalledClock
from gyre_runtime.checkpoints import Place
from gyre_runtime.layouts import LayoutCatalog

from gyre_monitor.domain.incidents import AlertRecord, incidents
from gyre_monitor.domain.outcomes import ArmTotals
from gyre_monitor.domain.traces import StoredSpan, parents_first
from gyre_monitor.store import reports
from gyre_monitor.store.database import Database
from gyre_monitor.store.spans import linked_spans, traces_of

MAX_TRACES = 200
MAX_SPANS = 5000


class MonitorServicer(rpc.MonitorServiceServicer):
    """`gyre.monitor.v1.MonitorService`.

    Args:
        database: what is known.
        loops: specs by name.
        layouts: the feature layouts of the loops.
        incident_gap_s: alerts at most so many seconds apart belong together.
        topic_differences: what is not as declared of each loop's topics; may be filled later.
        stalled: the partitions of a loop whose replay clock stands.
        refusals: how many events of a loop's behaviour were refused, by topic and reason.
        wall: the clock, unix seconds.
    """

    def __init__(  # noqa: PLR0913 - the parts that bootstrap wires
        self,
        database: Database,
        loops: Mapping[str, LoopSpec],
        *,
        layouts: LayoutCatalog,
        incident_gap_s: float,
        topic_differences: Mapping[str, Sequence[str]] = MappingProxyType({}),
        stalled: Callable[[str], Mapping[Place, StalledClock]] = lambda _loop: {},
        refusals: Callable[[str], Mapping[tuple[str, str], RefusalCount]] = lambda _loop: {},
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._loops = database, dict(loops)
        self._incident_gap_s, self._wall = incident_gap_s, wall
        self._topic_differences, self._layouts = topic_differences, layouts
        self._stalled, self._refusals = stalled, refusals

    def _spec(self, loop: str) -> LoopSpec:
        spec = self._loops.get(loop)
        if spec is None:
            raise unknown_loop(loop)
        return spec

    async def GetLoopStatus(self, request: pb.GetLoopStatusRequest, context: object) -> pb.GetLoopStatusResponse:
        """The stage that every part of the loop is in."""
        volume = self._spec(request.loop).training.triggers.volume
        found = await self._database.read(reports.status, request.loop, now=self._wall())
        answer = pb.GetLoopStatusResponse(
            interactions_since_trigger=found.interactions_since_trigger,
            volume_threshold=volume.events if volume else 0,
            loop_time_s=found.loop_time_s,
            topic_differences=self._topic_differences.get(request.loop, ()),
            layouts=self._layouts.summaries(request.loop),
        )
        for each in found.stages:
            stage = answer.stages.add(stage=each.stage, state=each.state, subject=each.subject, count=each.count)
            if each.update_time:
                stage.update_time.CopyFrom(_timestamp(each.update_time))
        for (name, partition), clock in sorted(self._stalled(request.loop).items()):
            answer.stalled_clocks.add(
                topic=name,
                partition=partition,
                clock_time=_timestamp(clock.newest),
                next_time=_timestamp(clock.next_time),
                refused=clock.refused,
            )
        for (name, reason), refused in sorted(self._refusals(request.loop).items()):
            last_time = _timestamp(refused.last_time)
            answer.refused_events.add(topic=name, reason=reason, count=refused.count, last_time=last_time)
        return answer

    async def GetExperiment(self, request: pb.GetExperimentRequest, context: object) -> pb.GetExperimentResponse:
        """Figures by arm and version; of a rollout those of the time while it was under way.

        Raises:
            NotFound: the loop or the rollout is not known (UNKNOWN_LOOP, UNKNOWN_ROLLOUT).
        """
        self._spec(request.loop)
        totals = await self._database.read(reports.experiment, request.loop, request.rollout_id)
        if totals is None:
            raise NotFound("UNKNOWN_ROLLOUT", f"rollout_id = {request.rollout_id!r}: is not known")
        return pb.GetExperimentResponse(arms=[_metrics(*key, each) for key, each in sorted(totals.items())])

    async def ListAlerts(self, request: pb.ListAlertsRequest, context: object) -> pb.ListAlertsResponse:
        """Alerts, newest first, at most 1,000."""
        self._spec(request.loop)
        found = await self._database.read(reports.alerts, request.loop, only_firing=request.firing)
        return pb.ListAlertsResponse(alerts=[_alert(request.loop, each) for each in found])

    async def ListIncidents(self, request: pb.ListIncidentsRequest, context: object) -> pb.ListIncidentsResponse:
        """Groups of the newest 1,000 alerts, newest first."""
        self._spec(request.loop)
        found = await self._database.read(reports.alerts, request.loop)
        answer = pb.ListIncidentsResponse()
        for each in incidents(found, gap_s=self._incident_gap_s):
            incident = answer.incidents.add(
                incident_id=each.incident_id,
                alerts=[_alert(request.loop, alert) for alert in each.alerts],
                start_time=_timestamp(each.start_time),
            )
            if each.end_time is not None:
                incident.end_time.CopyFrom(_timestamp(each.end_time))
        return answer

    async def GetLineage(self, request: pb.GetLineageRequest, context: object) -> pb.GetLineageResponse:
        """What led to an answer: ids for every answer, spans as far as its trace and those behind it were kept.

        Raises:
            NotFound: no such answer is known, yet or any more (UNKNOWN_LOOP, UNKNOWN_REQUEST).
        """
        window_s = self._spec(request.loop).training.label.attribution_window_s
        chain = await self._database.read(reports.chain, request.loop, request.request_id, window_s=window_s)
        if chain is None:
            raise NotFound("UNKNOWN_REQUEST", f"request_id = {request.request_id!r}: no such answer is known")
        spans = await self._spans(request.loop, chain)
        lineage = pb.Lineage(
            request_id=chain.request_id,
            model_version=chain.model_version,
            rollout_id=chain.rollout_id,
            run_id=chain.run_id,
            trigger_id=chain.trigger_id,
            snapshots=chain.snapshots,
            interaction_ids=chain.interaction_ids,
        )
        return pb.GetLineageResponse(lineage=lineage, spans=[_span(each) for each in parents_first(spans)])

    async def _spans(self, loop: str, chain: reports.Chain) -> list[StoredSpan]:
        traces = await self._database.read(traces_of, loop, chain.request_id, chain.rollout_id)
        return await self._database.read(linked_spans, traces, max_traces=MAX_TRACES, max_spans=MAX_SPANS)


def _metrics(arm: str, version: str, totals: ArmTotals) -> pb.ArmMetrics:
    low, high = totals.ctr_interval()
    return pb.ArmMetrics(
        arm=arm,
        version=version,
        impressions=totals.impressions,
        clicked=totals.clicked,
        converted=totals.converted,
        ctr=totals.ctr,
        conversion=totals.conversion,
        ctr_low=low,
        ctr_high=high,
        latency_p50_s=totals.latency_s(0.5),
        latency_p99_s=totals.latency_s(0.99),
        degraded_share=totals.degraded_share,
    )


def _alert(loop: str, record: AlertRecord) -> events.Alert:
    made = events.Alert(alert_id=record.alert_id, loop=loop, name=record.name, message=record.message)
    made.severity = record.severity  # type: ignore[assignment]  # the number of the enum, as it came
    made.start_time.CopyFrom(_timestamp(record.start_time))
    if record.end_time is not None:
        made.end_time.CopyFrom(_timestamp(record.end_time))
    return made


def _span(span: StoredSpan) -> pb.TraceSpan:
    made = pb.TraceSpan(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        service=span.service,
        name=span.name,
        duration_s=span.duration_s,
        failed=span.failed,
        attributes=span.attributes,
        links=[pb.SpanLink(trace_id=trace_id, span_id=span_id) for trace_id, span_id in span.links],
    )
    made.start_time.FromNanoseconds(span.start_ns)
    return made


def _timestamp(unix_s: float) -> Timestamp:
    made = Timestamp()
    made.FromMicroseconds(round(unix_s * 1e6))
    return made
