"""Builds the monitor on a lifespan: database, spans, stream, outbox, gRPC server."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from gyre.events.v1.privacy_pb2 import UserForgotten
from gyre.monitor.v1.monitor_pb2_grpc import add_MonitorServiceServicer_to_server
from gyre_core.spec import LoopSpec
from gyre_core.topics import tombstones_kept_s
from gyre_privacy.masking import open_privacy, read_keyring
from gyre_privacy.pseudonyms import own_keyring, user_hash
from gyre_privacy.tombstones import Tombstones
from gyre_runtime import Dependency, Lifespan, Registration, Server, build_server, channel, load_loops
from gyre_runtime.events import Event
from gyre_runtime.kafka import Producer, ensure_topics
from gyre_runtime.layouts import LayoutCatalog

from gyre_monitor.adapters.peers import KafkaTriggers, TrainerRuns
from gyre_monitor.handlers import ErasureHandler, Figures, Monitor, Outbox, keep_small
from gyre_monitor.settings import MonitorSettings
from gyre_monitor.store.database import Database
from gyre_monitor.store.model_retention import ModelRetention
from gyre_monitor.store.projection import Projection
from gyre_monitor.store.retention import Retention
from gyre_monitor.transport.otlp import OtlpServer, TraceReceiver
from gyre_monitor.transport.servicer import MonitorServicer
from gyre_monitor.transport.stream import LoopConsumer

SOURCE = "gyre/monitor"


@dataclass(frozen=True, slots=True)
class RunningMonitor:
    """What tests and programs that embed the service may look at."""

    server: Server
    otlp: OtlpServer
    database: Database


async def bootstrap(lifespan: Lifespan, settings: MonitorSettings) -> RunningMonitor:
    """Wire the service; spans and questions are answered before Kafka is there."""
    loops = load_loops(settings)
    privacy = open_privacy(settings, loops, users_only=True)
    timeout_s = settings.monitor_flow_timeout_s
    database = await lifespan.enter(Database(settings.database_url))
    shared = read_keyring(settings)
    keyring = shared or own_keyring(settings.state_dir / "user-key.json")

    def users(loop: str, message: UserForgotten) -> list[bytes]:
        if message.user_hash:
            return [message.user_hash]
        ids = dict.fromkeys((message.user_id, privacy[loop].user(message.user_id)))
        return [user_hash(keyring, loop, each) for each in ids]

    # A topic deletes whole segments, so that a tombstone may outlive its time by one.
    erasures = ErasureHandler(database, users, lambda loop: 2 * tombstones_kept_s(loops[loop]))
    tombstones = Tombstones(loops, shared, on_tombstone=erasures.note)

    def forgotten(event: Event) -> bool:
        if is_covered := tombstones.cover(event):
            erasures.note_event(event)
        return is_covered

    projection = Projection(database, loops, keyring=keyring, timeout_s=timeout_s, forgotten=forgotten)
    await projection.prepare()
    otlp = await lifespan.enter(OtlpServer(settings.otlp_listen, TraceReceiver(database)))
    producer = await lifespan.enter(Producer(settings.kafka, source=SOURCE))
    layouts = await lifespan.enter(LayoutCatalog(settings.kafka, loops))
    lifespan.background("layouts", layouts.follow())
    outbox, figures = Outbox(database, KafkaTriggers(producer)), Figures(database, tuple(loops))
    runs = TrainerRuns(await lifespan.enter(channel(settings.trainer, settings, name="trainer")))
    monitor = Monitor(database, projection, outbox=outbox, figures=figures, runs=runs, timeout_s=timeout_s)
    lifespan.depends_on(Dependency("database", database.ping))
    lifespan.depends_on(Dependency("kafka", producer.ping, required=False))

    topic_differences: dict[str, list[str]] = {}
    consumers: dict[str, LoopConsumer] = {}

    def consumer(spec: LoopSpec) -> LoopConsumer:
        made = consumers[spec.loop] = LoopConsumer(
            settings.kafka,
            spec,
            projection=projection,
            monitor=monitor,
            batch_events=settings.monitor_batch_events,
            mask=privacy.mask,
        )
        return made

    async def follow() -> None:
        for each in await ensure_topics(settings, loops.values()):
            topic_differences.setdefault(each.topic.partition(".")[0], []).append(str(each))
        lifespan.background("triggers", outbox.run())
        lifespan.background("watch", monitor.watch())
        lifespan.background("erasures", erasures.run())
        lifespan.background("spans of erased requests", erasures.erase_late_spans())
        lifespan.background("tombstones", tombstones.follow(settings))
        await tombstones.ready()
        for name, spec in loops.items():
            lifespan.for_loop(name, partial(consumer, spec), required=False)

    lifespan.background("figures", figures.run())
    lifespan.background("retention", keep_small(database, _retention(settings), ModelRetention.of(loops)))
    lifespan.set_up("stream", follow(), required=False)
    servicer = MonitorServicer(
        database,
        loops,
        layouts=layouts,
        incident_gap_s=settings.monitor_incident_gap_s,
        topic_differences=topic_differences,
        stalled=lambda loop: consumers[loop].stalled if loop in consumers else {},
        refusals=lambda loop: consumers[loop].refusals if loop in consumers else {},
    )
    registration = Registration(add_MonitorServiceServicer_to_server, servicer)
    server = await lifespan.serve(build_server(settings, [registration], health=lifespan.health))
    return RunningMonitor(server, otlp, database)


def _retention(settings: MonitorSettings) -> Retention:
    return Retention(
        impressions=settings.monitor_impressions_kept,
        interactions=settings.monitor_interactions_kept,
        request_spans=settings.monitor_request_spans_kept,
        model_spans=settings.monitor_model_spans_kept,
        alerts=settings.monitor_alerts_kept,
    )
