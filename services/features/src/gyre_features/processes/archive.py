"""`archive`: Kafka to Iceberg. Begins where the tables stand."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from aiokafka import TopicPartition
from gyre.events.v1 import features_pb2 as events_pb2
from gyre.events.v1 import privacy_pb2
from gyre_core.features import Layout
from gyre_core.layouts import LayoutDefinition, LayoutRefused, require_kinds
from gyre_core.spec import LoopSpec
from gyre_core.topics import tombstones_kept_s, topic
from gyre_privacy.masking import Privacy, open_privacy, read_keyring
from gyre_privacy.redaction import redactor
from gyre_privacy.tombstones import Tombstones
from gyre_runtime import Dependency, Lifespan, Precondition, Unavailable, build_server, load_loops
from gyre_runtime.admission import Admission
from gyre_runtime.checkpoints import Batch, Checkpoint, Place
from gyre_runtime.events import message_types
from gyre_runtime.kafka import Consumer, ConsumerOptions, ConsumerWork, Producer, ensure_topics
from gyre_runtime.layouts import LayoutCatalog
from gyre_warehouse.tables import TABLE_OF, catalog_properties, open_catalog
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import RESTError

from gyre_features.privacy.compaction import keep_compacting
from gyre_features.privacy.erasure import Eraser
from gyre_features.processes.stream import TYPES
from gyre_features.settings import ArchiveSettings
from gyre_features.warehouse.archive import Archive

GROUP = "features-archive"
_RETRY_S = 1.0
_LOG = logging.getLogger(__name__)
ARCHIVED = {**TYPES, **message_types(events_pb2.BatchApplied)}


async def archive(lifespan: Lifespan, settings: ArchiveSettings) -> None:
    """Wire the process and return; it then runs until the lifespan ends.

    It listens, and is not ready, while Kafka or the warehouse's catalogue is away.
    """
    loops = load_loops(settings)
    privacy = open_privacy(settings, loops, redactor)
    catalog_properties(settings)  # a secret that cannot be used stops the start
    probe = await lifespan.enter(Producer(settings.kafka, source="gyre/features-archive"))
    lifespan.depends_on(Dependency("kafka", probe.ping))
    layouts = await lifespan.enter(LayoutCatalog(settings.kafka, loops))
    await lifespan.serve(build_server(settings, [], health=lifespan.health))

    async def follow() -> None:
        await ensure_topics(settings, loops.values())
        opened = await _opened(settings)
        _write(lifespan, settings, _Resources(loops, opened, layouts, privacy, probe))

    lifespan.set_up("warehouse", follow())


@dataclass(frozen=True)
class _Resources:
    """What the archive works with."""

    loops: Mapping[str, LoopSpec]
    catalog: Catalog
    layouts: LayoutCatalog
    privacy: Privacy
    probe: Producer


def _write(lifespan: Lifespan, settings: ArchiveSettings, resources: _Resources) -> None:
    """Start what reads Kafka and writes the tables."""
    loops, probe = resources.loops, resources.probe
    eraser: Eraser | None = None

    def erase(loop: str, message: privacy_pb2.UserForgotten, _offset: int) -> None:
        if eraser is not None:
            eraser.note(loop, message, is_from_before=not tombstones.are_ready)

    keyring = read_keyring(settings)
    tombstones = Tombstones(loops, keyring, on_tombstone=erase)
    writers = {name: _archive(settings, resources.catalog, tombstones) for name in loops}
    kept_s = {name: tombstones_kept_s(spec) for name, spec in loops.items()}
    eraser = Eraser(writers, probe, settings.kafka, keyring, kept_s)
    lifespan.background("tombstones", tombstones.follow(settings))

    async def ready(spec: LoopSpec) -> None:
        await tombstones.ready()
        await resources.layouts.ready()
        _require_kinds(spec, resources.layouts)

    for name, writer in writers.items():
        lifespan.background(f"append in time for {name}", writer.run())
        release = partial(eraser.release, name)
        work = partial(
            _loop_work, settings, loops[name], writer, resources.privacy, partial(ready, loops[name]), release
        )
        lifespan.for_loop(name, work)
    lifespan.background("erase", eraser.run())
    every_s = settings.features_users_compaction_s
    lifespan.background("compaction of users", keep_compacting(probe, loops, tombstones, every_s=every_s))


def _archive(settings: ArchiveSettings, catalog: Catalog, tombstones: Tombstones) -> Archive:
    return Archive(
        catalog,
        counted=tombstones.without,
        rows=settings.features_archive_rows,
        seconds=settings.features_archive_s,
        payload_bytes=settings.features_archive_bytes,
    )


async def _opened(settings: ArchiveSettings) -> Catalog:
    """The catalogue, however long it is away."""
    while True:
        try:
            return await asyncio.to_thread(open_catalog, settings)
        except (OSError, RESTError) as error:
            facts = {"warehouse": settings.warehouse, "problem": f"{type(error).__name__}: {error}"[:200]}
            _LOG.warning("waiting for the warehouse", extra=facts)
            await asyncio.sleep(_RETRY_S)


def _require_kinds(spec: LoopSpec, layouts: LayoutCatalog) -> None:
    """Take nothing in under a gyre.yaml that the stream refuses: what fits the layouts that it maintains would be lost.

    Raises:
        Precondition: a field has another kind in a layout that is maintained (KIND_CHANGED).
    """
    try:
        require_kinds(Layout.compile(spec).hash, LayoutDefinition.of(spec), layouts.known(spec.loop))
    except LayoutRefused as refused:
        raise Precondition(refused.reason, f"{spec.loop}: {refused}") from refused


def _loop_work(
    settings: ArchiveSettings,
    spec: LoopSpec,
    writer: Archive,
    privacy: Privacy,
    ready: Callable[[], Awaitable[None]],
    release: Callable[[], Awaitable[None]],
) -> ConsumerWork:
    """What reads the topics of a loop's tables, from where each table stands, and appends their rows."""

    async def stored(places: Sequence[Place]) -> dict[Place, list[Checkpoint]]:
        names = {name for name, _ in places}
        try:
            stored = {name: await asyncio.to_thread(writer.checkpoints, name) for name in names}
        except (OSError, RESTError) as error:
            raise Unavailable("WAREHOUSE_UNAVAILABLE", f"the warehouse does not answer: {error!r:.200}") from error
        return {(name, number): [stored[name].get(number, Checkpoint())] for name, number in places}

    async def revoked(_consumer: Consumer, _partitions: tuple[TopicPartition, ...]) -> None:
        await release()

    consumer = Consumer(
        settings.kafka,
        group=f"{GROUP}-{spec.loop}",
        topics=[topic(spec.loop, suffix) for suffix in TABLE_OF],
        types=ARCHIVED,
        options=ConsumerOptions(
            max_records=5000,
            dead_letters=False,
            admission=Admission({spec.loop: spec}, ARCHIVED, privacy.mask, is_slow=privacy.redacts),
            stored=stored,
            on_revoked=revoked,
        ),
    )

    async def add(batch: Batch) -> None:
        await writer.add(batch.events, batch.ends)

    return ConsumerWork(consumer, add, ready=ready, close=release, check=writer.check)
