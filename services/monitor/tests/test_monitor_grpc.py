"""The service over gRPC beside the real Kafka: every answer, every status, and the whole chain behind an answer."""

import asyncio

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as features
from gyre.events.v1 import models_pb2 as models
from gyre.events.v1 import monitor_pb2 as events
from gyre.monitor.v1 import monitor_pb2 as pb
from gyre.trainer.v1 import trainer_pb2 as trainer_pb
from gyre.trainer.v1 import trainer_pb2_grpc as trainer_rpc
from gyre_core.layouts import KnownLayout, LayoutDefinition, LayoutState
from gyre_core.topics import topic
from gyre_local.testing import eventually
from gyre_runtime import Health, Invalid, NotFound, Registration, ServiceSettings, build_server, setup_telemetry
from gyre_runtime.kafka import create_topics
from gyre_runtime.kafka.topics import DeadLetterTopic
from gyre_runtime.layouts import layout_message
from gyre_runtime.tracing import current_traceparent, start_span
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

pytestmark = pytest.mark.adapter
TRIGGERS = ("training.triggers", models.TrainingTrigger)


async def status(service) -> pb.GetLoopStatusResponse:
    """The loop's status."""
    return await service.stub.GetLoopStatus(pb.GetLoopStatusRequest(loop=service.loop), timeout=30)


async def test_every_method_refuses_what_it_does_not_know(start) -> None:
    """Another loop, rollout or request is NOT_FOUND with its reason; a missing loop is INVALID_ARGUMENT."""
    service = await start()
    stub, loop = service.stub, service.loop
    calls = [
        (stub.GetLoopStatus(pb.GetLoopStatusRequest(loop="elsewhere"), timeout=30), "UNKNOWN_LOOP"),
        (stub.GetExperiment(pb.GetExperimentRequest(loop="elsewhere"), timeout=30), "UNKNOWN_LOOP"),
        (stub.GetExperiment(pb.GetExperimentRequest(loop=loop, rollout_id="none"), timeout=30), "UNKNOWN_ROLLOUT"),
        (stub.ListAlerts(pb.ListAlertsRequest(loop="elsewhere"), timeout=30), "UNKNOWN_LOOP"),
        (stub.ListIncidents(pb.ListIncidentsRequest(loop="elsewhere"), timeout=30), "UNKNOWN_LOOP"),
        (stub.GetLineage(pb.GetLineageRequest(loop="elsewhere", request_id="r"), timeout=30), "UNKNOWN_LOOP"),
        (stub.GetLineage(pb.GetLineageRequest(loop=loop, request_id="none"), timeout=30), "UNKNOWN_REQUEST"),
    ]
    for call, reason in calls:
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.reason == reason
    wrong = [
        (stub.GetLoopStatus(pb.GetLoopStatusRequest(), timeout=30), "loop"),
        (stub.GetExperiment(pb.GetExperimentRequest(), timeout=30), "loop"),
        (stub.ListAlerts(pb.ListAlertsRequest(), timeout=30), "loop"),
        (stub.ListIncidents(pb.ListIncidentsRequest(), timeout=30), "loop"),
        (stub.GetLineage(pb.GetLineageRequest(loop=loop), timeout=30), "request_id"),
    ]
    for call, field in wrong:
        with pytest.raises(Invalid) as invalid:
            await call
        assert invalid.value.violations[0].field == field


async def test_the_status_of_a_loop_that_has_done_nothing(start) -> None:
    """All six stages are there, in order, idle, without a time."""
    found = await status(await start())
    names = ["events", "features", "training", "rollout", "serving", "outcomes"]
    assert [(each.stage, each.state, each.count) for each in found.stages] == [(name, "idle", 0) for name in names]
    assert not any(each.HasField("update_time") for each in found.stages)
    assert (found.interactions_since_trigger, found.volume_threshold, found.loop_time_s) == (0, 10, 0)


async def test_the_status_names_topics_that_are_not_as_declared(start, spec, settings) -> None:
    """A topic that somebody else made is told with its setting, its value and what it must be."""
    name = topic(spec.loop, "behavior.interactions")
    await create_topics(settings.kafka, [DeadLetterTopic(name)])
    service = await start()

    async def told() -> bool:
        return (
            f"{name}: message.timestamp.type = CreateTime: must be LogAppendTime"
            in (await status(service)).topic_differences
        )

    await eventually(told, timeout_s=20, message="the status names the topic")


async def test_the_status_tells_the_layouts_and_how_far_they_are(start, spec) -> None:
    """Of the layouts that are not retired state, progress and users are told, the one declared last first."""
    service = await start()
    definition = LayoutDefinition.of(spec)
    for hash_, state, at in (("old", "READY", 1.0), ("new", "FILLING", 2.0), ("gone", "RETIRED", 0.0)):
        by = (f"by {hash_}",)
        layout = KnownLayout(hash_, definition, LayoutState(state), at, at, filled=3, total=4, wanted_by=by)
        await service.send("features.layouts", layout_message(service.loop, layout), key=hash_)

    async def told() -> bool:
        found = (await status(service)).layouts
        assert not any(each.definition for each in found)
        shares = [(each.layout, each.filled_events, each.total_events, *each.wanted_by) for each in found]
        return shares == [("new", 3, 4, "by new"), ("old", 3, 4, "by old")]

    await eventually(told, timeout_s=20, message="the status tells the layouts")


async def test_the_status_tells_a_replay_clock_that_stands_and_the_command_that_moves_it(start, make, settings) -> None:
    """After a gap longer than `max_future` events are refused; the status says where and since when, until a mark."""
    service = await start()
    name, gap = topic(service.loop, "behavior.interactions"), 5 * 86_400
    await service.send("behavior.interactions", make.interaction())
    for after in (60, *[0] * 9):
        await service.send("behavior.interactions", make.interaction(), at=make.begin + gap + after)

    async def stands() -> bool:
        found = (await status(service)).stalled_clocks
        seen = [(each.topic, each.clock_time.ToSeconds(), each.next_time.ToSeconds(), each.refused) for each in found]
        return seen == [(name, int(make.begin), int(make.begin) + gap, 10)]

    await eventually(stands, timeout_s=20, message="the status tells the clock that stands")
    mark = behavior.ClockMark()
    mark.clock_time.FromSeconds(int(make.begin) + gap)
    await service.send("behavior.interactions", mark, at=make.begin + gap)

    async def moves() -> bool:
        return not (await status(service)).stalled_clocks

    await eventually(moves, timeout_s=20, message="the clock moves again")


async def test_the_status_tells_how_many_events_were_refused_and_why(start, make, settings) -> None:
    """Events that are later than `max_lateness` are counted by topic and reason, with when the last one came."""
    service = await start()
    name = topic(service.loop, "behavior.interactions")
    await service.send("behavior.interactions", make.interaction())
    for days in (400, 500):
        await service.send("behavior.interactions", make.interaction(), at=make.begin - days * 86_400)

    async def counted() -> bool:
        found = (await status(service)).refused_events
        assert all(each.last_time.ToSeconds() > make.begin for each in found)
        return [(each.topic, each.reason, each.count) for each in found] == [(name, "TOO_OLD", 2)]

    await eventually(counted, timeout_s=20, message="the status counts what is refused")


async def test_the_status_tells_a_replay_clock_that_one_event_moved_too_far(start, make) -> None:
    """Where the first event of a partition is a year ahead of all others, these are counted, until the clock is set."""
    service = await start()
    name, first = topic(service.loop, "behavior.interactions"), make.begin + 400 * 86_400
    for at in (first, make.begin + 60, *[make.begin] * 9):
        await service.send("behavior.interactions", make.interaction(), at=at)

    async def stands() -> bool:
        found = (await status(service)).stalled_clocks
        seen = [(each.topic, each.clock_time.ToSeconds(), each.next_time.ToSeconds(), each.refused) for each in found]
        return seen == [(name, int(first), int(make.begin), 10)]

    await eventually(stands, timeout_s=20, message="the status tells the clock that stands")
    mark = behavior.ClockMark(back=True)
    mark.clock_time.FromSeconds(int(make.begin))
    await service.send("behavior.interactions", mark, at=make.begin)

    async def moves() -> bool:
        return not (await status(service)).stalled_clocks

    await eventually(moves, timeout_s=20, message="the clock moves again")


async def test_a_loop_that_turns_is_seen_in_every_stage(start, make) -> None:
    """Events, features, training, rollout, answers and outcomes are counted as they pass, and a trigger is sent."""
    service = await start()
    loop = service.loop
    await service.send("behavior.impressions", make.impression("r1"))
    for _ in range(10):
        await service.send("behavior.interactions", make.interaction(), at=make.begin + 1)
    applied = features.BatchApplied(loop=loop, layout="abc", events=11)
    await service.send("features.applied", applied)

    async def triggered() -> str:
        return (await status(service)).stages[2].subject

    trigger_id = await eventually(triggered, timeout_s=20, message="the volume triggers")
    await service.send("models.candidates", make.candidate(loop, "v1", trigger_id=trigger_id))
    for epoch, (kind, share) in enumerate([("STARTED", 0.0), ("SHIFTED", 0.5), ("PROMOTED", 1.0)], start=1):
        await service.send("models.rollout-events", make.rollout(loop, "ro1", kind, epoch=epoch, share=share))

    async def promoted() -> pb.GetLoopStatusResponse | None:
        found = await status(service)
        return found if found.stages[3].state == "promoted" else None

    found = await eventually(promoted, timeout_s=20, message="the rollout is seen")
    assert [(each.stage, each.state, each.subject, each.count) for each in found.stages] == [
        ("events", "receiving", "", 11),
        ("features", "applying", "abc", 11),
        ("training", "registered", "v1", 2),
        ("rollout", "promoted", "ro1", 3),
        ("serving", "answering", "v1", 1),
        ("outcomes", "crediting", "v1", 1),
    ]
    assert found.interactions_since_trigger == 0


async def test_figures_by_arm_and_version(start, make, metrics) -> None:
    """`GetExperiment` tells the figures with their interval, and the metrics page shows the same."""
    service = await start()
    for n in range(4):
        latency = 0.01 if n < 3 else 0.2
        await service.send("behavior.impressions", make.impression(f"r{n}", f"u{n}", latency_s=latency), key=f"u{n}")
    await service.send("behavior.interactions", make.interaction("u0"), at=make.begin + 1)
    await service.send("behavior.interactions", make.interaction("u1", kind="buy", value=5), at=make.begin + 1)

    async def complete() -> pb.ArmMetrics | None:
        found = await service.stub.GetExperiment(pb.GetExperimentRequest(loop=service.loop), timeout=30)
        each = found.arms[0] if found.arms else pb.ArmMetrics()
        return each if (each.impressions, each.clicked, each.converted) == (4, 1, 1) else None

    arm = await eventually(complete, timeout_s=20, message="everything is counted")
    assert (arm.arm, arm.version, arm.ctr, arm.conversion, arm.degraded_share) == ("live", "v1", 0.25, 0.25, 0)
    assert 0 < arm.ctr_low < 0.25 < arm.ctr_high < 1
    assert arm.latency_p50_s == pytest.approx(0.01, rel=0.2)
    assert arm.latency_p99_s == pytest.approx(0.2, rel=0.2)
    labels = {"loop": service.loop, "version": "v1", "arm": "live"}
    await eventually(lambda: metrics("gyre_monitor_ctr", labels) == 0.25, message="the gauge follows")
    assert metrics("gyre_monitor_latency_seconds", {**labels, "quantile": "0.99"}) == arm.latency_p99_s


async def test_behaviour_that_the_loop_does_not_allow_is_left_out(start, make, metrics) -> None:
    """Undeclared types, values out of range and times in the future count nowhere, as in the features service."""
    service = await start()
    await service.send("behavior.impressions", make.impression("r1"))
    await service.send("behavior.interactions", make.interaction(kind="stare"))
    await service.send("behavior.interactions", make.interaction(kind="buy", value=5000))
    await service.send("behavior.interactions", make.interaction(), at=4e9)
    await service.send("behavior.interactions", make.interaction(), at=make.begin + 5)

    async def counted() -> bool:
        found = await status(service)
        return (found.interactions_since_trigger, found.stages[0].count) == (1, 2)

    await eventually(counted, timeout_s=20, message="what is allowed is counted")
    labels = {"loop": service.loop, "topic": topic(service.loop, "behavior.interactions")}
    for reason in ("UNKNOWN_TYPE", "VALUE_OUT_OF_RANGE", "IN_THE_FUTURE"):
        skipped = metrics("gyre_consumer_skipped_total", {**labels, "reason": reason})
        assert skipped == 1, reason


@pytest.fixture
def metrics(telemetry):
    """Read a value of this process's metrics."""

    def read(name: str, labels: dict[str, str]) -> float | None:
        return telemetry.registry.get_sample_value(name, labels)

    return read


@pytest.fixture(scope="session")
def telemetry():
    """The process's telemetry: OpenTelemetry can be set up once only."""
    return setup_telemetry("tests", ServiceSettings(trace_ratio=0.0))


async def test_alerts_and_incidents(start) -> None:
    """Alerts stand as their newest record says; those that belong together are one incident."""
    service = await start()

    async def tell(alert_id: str, begin: int, end: int | None = None) -> None:
        alert = events.Alert(alert_id=alert_id, loop=service.loop, name="slow", severity=2, message="p99 is high")
        alert.start_time.FromSeconds(begin)
        if end is not None:
            alert.end_time.FromSeconds(end)
        await service.send("alerts", alert, key=alert_id)

    for given in (("a", 1000), ("b", 1010), ("a", 1000, 1100), ("c", 9000, 9001)):
        await tell(*given)

    async def known() -> list[events.Alert]:
        found = await service.stub.ListAlerts(pb.ListAlertsRequest(loop=service.loop), timeout=30)
        return list(found.alerts) if len(found.alerts) == 3 else []

    alerts = await eventually(known, timeout_s=20, message="the alerts are known")
    assert [(each.alert_id, each.HasField("end_time")) for each in alerts] == [("c", True), ("b", False), ("a", True)]
    firing = await service.stub.ListAlerts(pb.ListAlertsRequest(loop=service.loop, firing=True), timeout=30)
    assert [each.alert_id for each in firing.alerts] == ["b"]
    assert (firing.alerts[0].severity, firing.alerts[0].message) == (events.ALERT_SEVERITY_WARNING, "p99 is high")
    found = await service.stub.ListIncidents(pb.ListIncidentsRequest(loop=service.loop), timeout=30)
    assert [[each.alert_id for each in incident.alerts] for incident in found.incidents] == [["a", "b", "c"]]
    await tell("b", 1010, 1200)

    async def ended() -> list[pb.Incident]:
        found = await service.stub.ListIncidents(pb.ListIncidentsRequest(loop=service.loop), timeout=30)
        return list(found.incidents) if len(found.incidents) == 2 else []

    newest, oldest = await eventually(ended, timeout_s=20, message="the alert has ended")
    assert [each.alert_id for each in newest.alerts] == ["c"]
    assert oldest.end_time.seconds == 1200


async def test_an_alert_that_nobody_can_read_is_dead_lettered(start, tail) -> None:
    """Alerts are the monitor's own: one that breaks its rules lies in the dead-letter topic with the reason."""
    service = await start()
    await service.send("alerts", events.Alert(loop=service.loop, name="no id"))
    letters = await tail("alerts.dlq", events.Alert)
    assert len(await eventually(letters, timeout_s=20, message="a dead letter is there")) == 1


async def test_the_chain_behind_an_answer_over_linked_traces(start, make, telemetry, tail) -> None:
    """Spans go out over a real exporter and come back as a tree from the answer to the events that tipped its run."""
    service = await start()
    loop = service.loop
    exporter = OTLPSpanExporter(endpoint=service.running.otlp.address, insecure=True)
    processor = SimpleSpanProcessor(exporter)
    spans: list[object] = []
    telemetry.tracer_provider.add_span_processor(_InThread(processor, spans))
    with start_span("track", flow="model", attributes={"gyre.loop": loop}):
        for _ in range(10):
            await service.send("behavior.interactions", make.interaction(), at=make.begin + 1)
    sent = await eventually(await tail(*TRIGGERS), timeout_s=20, message="a trigger is sent")
    with (
        start_span("training run", flow="model", links=[sent[0].traceparent], attributes={"gyre.loop": loop}),
        start_span("train", flow="model"),
    ):
        await service.send("models.candidates", make.candidate(loop, "v1", trigger_id=sent[0].message.trigger_id))
        run = current_traceparent()
    with start_span("rollout", flow="model", links=[run], attributes={"gyre.rollout_id": "ro1", "gyre.loop": loop}):
        await service.send("models.rollout-events", make.rollout(loop, "ro1", "STARTED", epoch=1))
        rollout = current_traceparent()
    facts = {"gyre.request_id": "r1", "gyre.loop": loop}
    with start_span("rank", flow="model", links=[rollout], attributes=facts):
        await service.send("behavior.impressions", make.impression("r1"))
    await asyncio.to_thread(_export, processor, spans)

    async def complete() -> pb.GetLineageResponse | None:
        try:
            found = await service.stub.GetLineage(pb.GetLineageRequest(loop=loop, request_id="r1"), timeout=30)
        except NotFound:
            return None
        return found if found.lineage.rollout_id and len(found.spans) >= 6 else None

    found = await eventually(complete, timeout_s=20, message="the chain is complete")
    lineage = found.lineage
    assert (lineage.model_version, lineage.rollout_id, lineage.run_id) == ("v1", "ro1", "run-v1")
    assert lineage.trigger_id == sent[0].message.trigger_id
    assert dict(lineage.snapshots) == {"behavior_impressions": 11, "behavior_interactions": 12}
    assert len(lineage.interaction_ids) == 10
    by_name = {span.name: span for span in found.spans}
    for name, earlier in (
        ("rank", "rollout"),
        ("rollout", "train"),
        ("training run", "training trigger"),
        ("training trigger", "track"),
    ):
        assert by_name[earlier].span_id in {link.span_id for link in by_name[name].links}, name
    names = [span.name for span in found.spans]
    assert names.index("training run") < names.index("train")


class _InThread:
    """Keeps ended spans, to be exported off the event loop that the receiver runs on."""

    def __init__(self, processor: SimpleSpanProcessor, spans: list[object]) -> None:
        self._processor, self._spans = processor, spans

    def on_start(self, span: object, parent_context: object = None) -> None:
        """Nothing happens at the beginning."""

    def on_end(self, span: object) -> None:
        """Keep it."""
        self._spans.append(span)

    def _on_ending(self, span: object) -> None:
        """Nothing happens before the end."""

    def shutdown(self) -> None:
        """Nothing is open."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Nothing waits."""
        return True


def _export(processor: SimpleSpanProcessor, spans: list[object]) -> None:
    for span in spans:
        processor.on_end(span)
    processor.shutdown()


class ToldTrainer(trainer_rpc.TrainerServiceServicer):
    """A trainer whose only run is what the test says."""

    def __init__(self) -> None:
        self.run = trainer_pb.Run()

    async def ListRuns(self, request: trainer_pb.ListRunsRequest, context: object) -> trainer_pb.ListRunsResponse:  # noqa: N802
        """Answer the run."""
        return trainer_pb.ListRunsResponse(runs=[self.run])


async def test_the_trainer_is_asked_about_a_run_that_holds_back(start, make, tail) -> None:
    """A refused run is learnt from the trainer over gRPC, and the next volume fires without waiting for a timeout."""
    told = ToldTrainer()
    registration = Registration(trainer_rpc.add_TrainerServiceServicer_to_server, told)
    async with build_server(ServiceSettings(), [registration], health=Health()) as server:
        service = await start(trainer=server.address)
        for _ in range(20):
            await service.send("behavior.interactions", make.interaction())
        triggers = await tail(*TRIGGERS)
        (first,) = await eventually(triggers, timeout_s=20, message="a trigger is sent")
        for _ in range(10):
            await service.send("behavior.interactions", make.interaction())
        told.run = trainer_pb.Run(
            run_id="run-1", trigger_id=first.message.trigger_id, state=trainer_pb.RUN_STATE_TRAINING
        )

        async def state() -> str:
            return (await status(service)).stages[2].state

        await eventually(lambda: _is(state, "training"), timeout_s=20, message="the run's state is shown")
        assert len(await triggers()) == 1
        told.run.state = trainer_pb.RUN_STATE_REFUSED

        async def second() -> bool:
            return len(await triggers()) == 2

        await eventually(second, timeout_s=20, message="the next trigger is sent")


async def _is(state, wanted: str) -> bool:
    return await state() == wanted
