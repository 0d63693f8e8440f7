"""`archive`: Kafka to Iceberg. Begins where the tables stand."""

import asyncio
import logging
from collections.abc import Iterable

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
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import RESTError

from gyre_features.privacy.erasure import Eraser
from gyre_features.privacy.tombstones import Tombstones
from gyre_features.processes.stream import TYPES
from gyre_features.settings import ArchiveSettings
from gyre_features.warehouse.archive import Archive

GROUP = "features-archive"
_RETRY_S = 1.0
_LOG = logging.getLogger(__name__)
ARCHIVED = {**TYPES, **message_types(events_pb2.BatchApplied)}


async def archive(lifespan: Lifespan, settings: ArchiveSettings) -> None:
    """Wire the process; it listens, and is not ready, while Kafka or the warehouse's catalogue is away."""
    loops = load_loops(settings)
    privacy = open_privacy(settings, loops, redactor)
    probe = await lifespan.enter(Producer(settings.kafka, source="gyre/features-archive"))
    lifespan.depends_on(Dependency("kafka", probe.ping))
    await lifespan.serve(build_server(settings, [], health=lifespan.health))

    async def follow() -> None:
        await ensure_topics(settings, loops.values())
        _write(lifespan, settings, loops, await _tables(settings, loops), privacy=privacy, probe=probe)

    lifespan.set_up("warehouse", follow())


def _write(
    lifespan: Lifespan,
    settings: ArchiveSettings,
    loops: dict[str, LoopSpec],
    catalog: Catalog,
    *,
    privacy: Privacy,
    probe: Producer,
) -> None:
    """Start what reads Kafka and writes the tables."""
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
    eraser = Eraser(writer, probe, settings.kafka)
    lifespan.background("append in time", writer.run())
    lifespan.background("tombstones", tombstones.follow(settings))
    lifespan.background("archive", _consume(consumer, writer, tombstones), stop=consumer.stop)
    lifespan.background("erase", eraser.run())


async def _tables(settings: ArchiveSettings, loops: Iterable[str]) -> Catalog:
    """Open the catalogue and create the tables that are missing, however long the catalogue or its store is away."""
    while True:
        try:
            return await asyncio.to_thread(_ensured, settings, loops)
        except (OSError, RESTError) as error:
            facts = {"warehouse": settings.warehouse, "problem": f"{type(error).__name__}: {error}"[:200]}
            _LOG.warning("waiting for the warehouse", extra=facts)
            await asyncio.sleep(_RETRY_S)


def _ensured(settings: ArchiveSettings, loops: Iterable[str]) -> Catalog:
    catalog = open_catalog(settings)
    for name in loops:
        for table in TABLE_OF.values():
            ensure_table(catalog, name, table)
    return catalog


def _consumer(settings: ArchiveSettings, loops: dict[str, LoopSpec], writer: Archive, privacy: Privacy) -> Consumer:
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
