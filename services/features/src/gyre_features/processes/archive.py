"""`archive`: Kafka to Iceberg. Begins where the tables stand."""

import asyncio

from aiokafka import TopicPartition
from gyre.events.v1 import features_pb2 as events_pb2
from gyre.events.v1 import privacy_pb2
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_privacy.masking import Privacy, open_privacy
from gyre_privacy.redaction import redactor
from gyre_runtime import Dependency, Lifespan, build_server, load_loops
from gyre_runtime.admission import Admission
from gyre_runtime.events import message_types
from gyre_runtime.kafka import Consumer, ConsumerOptions, Producer, ensure_topics
from gyre_warehouse.tables import TABLE_OF, ensure_table, open_catalog

from gyre_features.privacy.erasure import Eraser
from gyre_features.privacy.tombstones import Tombstones
from gyre_features.processes.stream import TYPES
from gyre_features.settings import FeaturesSettings
from gyre_features.warehouse.archive import Archive

GROUP = "features-archive"
ARCHIVED = {**TYPES, **message_types(events_pb2.BatchApplied)}


async def archive(lifespan: Lifespan, settings: FeaturesSettings) -> None:
    """Wire the process."""
    loops = load_loops(settings)
    privacy = open_privacy(settings, loops, redactor)
    await ensure_topics(settings, loops.values())
    catalog = await asyncio.to_thread(open_catalog, settings)
    for name in loops:
        for table in TABLE_OF.values():
            await asyncio.to_thread(ensure_table, catalog, name, table)
    eraser: Eraser | None = None

    def erase(loop: str, message: privacy_pb2.UserForgotten) -> None:
        if eraser is not None:
            eraser.note(loop, message)

    tombstones = Tombstones(loops, on_tombstone=erase)
    writer = Archive(
        catalog,
        counted=tombstones.without,
        rows=settings.features_archive_rows,
        seconds=settings.features_archive_s,
        payload_bytes=settings.features_archive_bytes,
    )
    consumer = _consumer(settings, loops, writer, privacy)
    probe = await lifespan.enter(Producer(settings.kafka, source="gyre/features-archive"))
    eraser = Eraser(writer, probe, settings.kafka)
    lifespan.depends_on(Dependency("kafka", probe.ping))
    await lifespan.enter(build_server(settings, [], health=lifespan.health))
    lifespan.background("append in time", writer.run())
    lifespan.background("tombstones", tombstones.follow(settings))
    lifespan.background("archive", _consume(consumer, writer, tombstones), stop=consumer.stop)
    lifespan.background("erase", eraser.run())


def _consumer(settings: FeaturesSettings, loops: dict[str, LoopSpec], writer: Archive, privacy: Privacy) -> Consumer:
    """What reads the topics of all tables, from where each table stands."""
    admission = Admission(loops, ARCHIVED, privacy.mask)

    async def assigned(consumer: Consumer, partitions: tuple[TopicPartition, ...]) -> None:
        for name in {each.topic for each in partitions}:
            stand = await asyncio.to_thread(writer.offsets, name)
            for each in partitions:
                if each.topic == name:
                    admission.start(each.topic, each.partition)
                    consumer.kafka.seek(each, stand.get(each.partition, 0))

    async def revoked(_consumer: Consumer, _partitions: tuple[TopicPartition, ...]) -> None:
        await writer.release()

    return Consumer(
        settings.kafka,
        group=GROUP,
        topics=[topic(name, suffix) for name in loops for suffix in TABLE_OF],
        types=ARCHIVED,
        options=ConsumerOptions(
            max_records=5000,
            dead_letters=False,
            admission=admission,
            on_assigned=assigned,
            on_revoked=revoked,
        ),
    )


async def _consume(consumer: Consumer, writer: Archive, tombstones: Tombstones) -> None:
    await tombstones.ready()
    async with consumer:
        await consumer.run(writer.add)
        await writer.flush()
