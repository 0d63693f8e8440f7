"""`stream`: Kafka to Redis for each maintained layout, from its store's applied offsets on, the catalogue first."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module

from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import models_pb2 as models
from gyre_core.layouts import KnownLayout, LayoutDefinition, NamedModel
from gyre_core.spec import LoopSpec
from gyre_core.topics import stream_group, topic
from gyre_privacy.masking import Privacy, open_privacy, read_keyring
from gyre_privacy.redaction import redactor
from gyre_privacy.tombstones import Tombstones
from gyre_runtime import Dependency, Lifespan, build_server, load_loops
from gyre_runtime.admission import Admission
from gyre_runtime.checkpoints import Place
from gyre_runtime.events import message_types
from gyre_runtime.kafka import Consumer, ConsumerOptions, Producer, View, ensure_topics
from gyre_runtime.layouts import TOPIC as LAYOUTS
from gyre_runtime.layouts import LayoutCatalog, layout_message, named_models
from redis.asyncio import Redis

from gyre_features.online.connection import open_redis, open_store
from gyre_features.online.leases import keep_leases
from gyre_features.online.retired import delete_stores
from gyre_features.online.store import OnlineStore
from gyre_features.settings import StreamSettings
from gyre_features.stream.layout_stream import LayoutStream, compacted_places, is_gone_from_kafka
from gyre_features.stream.maintainer import LayoutMaintainer
from gyre_features.stream.worker import CATALOGUE, Filling, StreamWorker

TOPICS = ("behavior.impressions", "behavior.interactions", CATALOGUE, "catalog.users")
TYPES = message_types(behavior.Impression, behavior.Interaction, behavior.ItemChanged, behavior.UserChanged)
_BATCHES_AT_ONCE = 4
_GARBAGE_AFTER = 100_000


@dataclass(frozen=True)
class _Parts:
    """What the streams of all layouts share."""

    settings: StreamSettings
    privacy: Privacy
    redis: Redis
    producer: Producer
    tombstones: Tombstones
    catalog: LayoutCatalog


async def stream(lifespan: Lifespan, settings: StreamSettings) -> None:
    """Wire the process and return; it listens, and is not ready, while Kafka or Redis is away."""
    loops = load_loops(settings)
    privacy = open_privacy(settings, loops, redactor)
    redis = await lifespan.enter(open_redis(settings))
    producer = await lifespan.enter(Producer(settings.kafka, source="gyre/features-stream"))
    catalog = await lifespan.enter(LayoutCatalog(settings.kafka, loops))
    parts = _Parts(settings, privacy, redis, producer, Tombstones(loops, read_keyring(settings)), catalog)
    maintainers: dict[str, LayoutMaintainer] = {}

    def stores() -> list[OnlineStore]:
        return [store for maintainer in maintainers.values() for store in maintainer.stores()]

    newest = open_store(settings, redis, next(iter(loops.values())))
    lifespan.depends_on(Dependency("redis", newest.ping))
    lifespan.depends_on(Dependency("kafka", producer.ping))
    await lifespan.serve(build_server(settings, [], health=lifespan.health))
    lifespan.background("leases", keep_leases(stores))
    lifespan.background("layouts", catalog.follow())
    lifespan.background("tombstones", parts.tombstones.follow(settings))

    async def follow() -> None:
        await ensure_topics(settings, loops.values())
        _quiet_garbage()
        for loop, spec in loops.items():
            types = message_types(models.RolloutView)
            view = await lifespan.enter(View(settings.kafka, topic(loop, "models.rollouts"), types))
            lifespan.for_loop(loop, partial(_maintainer, maintainers, parts, spec, view))

    lifespan.set_up("topics", follow())


def _maintainer(
    maintainers: dict[str, LayoutMaintainer], parts: _Parts, spec: LoopSpec, rollouts: View
) -> LayoutMaintainer:
    """What keeps the layouts of a loop."""
    loop = spec.loop

    def named() -> Sequence[NamedModel] | None:
        if not rollouts.is_ready:  # it is read again: what it held may be old
            return None
        event = rollouts.get(loop)
        return [] if event is None else named_models(event.message)

    async def publish(layout: KnownLayout) -> None:
        await parts.producer.send(topic(loop, LAYOUTS), layout_message(loop, layout), key=layout.hash)

    async def remove(hash_: str) -> None:
        await parts.producer.delete(topic(loop, LAYOUTS), hash_)

    async def clear(stores: Collection[str]) -> int:
        return await delete_stores(parts.redis, loop, stores)

    def open_stream(hash_: str, own: LoopSpec) -> LayoutStream:
        return _layout_stream(parts, made, (hash_, own))

    async def ready() -> None:
        await asyncio.gather(parts.tombstones.ready(), parts.catalog.ready(), rollouts.ready())

    made = LayoutMaintainer(
        spec=spec,
        catalog=parts.catalog,
        models=named,
        publish=publish,
        remove=remove,
        clear=clear,
        open=open_stream,
        ready=ready,
        grace_s=parts.settings.features_layout_grace_s,
    )
    maintainers[loop] = made
    return made


def _layout_stream(parts: _Parts, maintainer: LayoutMaintainer, layout: tuple[str, LoopSpec]) -> LayoutStream:
    """The stream of a layout: its hash, and the loop as it sees it.

    What may enter is decided by gyre.yaml, whatever the layout's own definition says.
    """
    settings, newest, (hash_, spec) = parts.settings, maintainer.spec, layout
    loop, store = spec.loop, open_store(settings, parts.redis, spec, maintainer.generation_of(hash_))
    lost = set[Place]()

    async def fill(places: Sequence[Place]) -> None:
        # The warehouse holds no refused records: where no other layout is read, whose stream writes their dead letters,
        # this one reads Kafka itself, as long as everything is still there. A store that lost the catalogue takes it
        # from the warehouse, since of two changes the one that wins by its event time need not be the newer record,
        # which compaction leaves; also when an attempt before this one was cut short.
        gives_way = maintainer.gives_way(hash_)
        if not gives_way and not await is_gone_from_kafka(consumer, store, places):
            lost.update(await compacted_places(consumer, store, places))
            places = [place for place in places if place in lost]
            if not places:
                return
        # What reads the warehouse takes memory, which a stream whose layouts are filled need not pay; and half a second
        # to import, in which the other layouts' streams go on.
        reading = await asyncio.to_thread(import_module, "gyre_features.processes.fill")
        definition, generation = LayoutDefinition.of(spec), store.generation
        job = reading.FillJob(settings, loop, definition, generation, tuple(places), gives_way=gives_way)
        await reading.run_fill(job, store, parts.tombstones)
        lost.difference_update(places)

    filling = Filling(
        fill,
        is_filling=partial(maintainer.is_filling, hash_),
        gives_way=partial(maintainer.gives_way, hash_),
        share=settings.features_fill_share,
        max_events=settings.features_fill_batch_events,
    )
    worker = StreamWorker(
        store,
        parts.producer,
        max_events=settings.features_batch_events,
        filling=filling,
        forgotten=parts.tombstones.cover,
        read_tombstones=partial(parts.tombstones.catch_up, loop),
    )
    topics = [topic(loop, suffix) for suffix in TOPICS]
    options = ConsumerOptions(
        max_records=_BATCHES_AT_ONCE * settings.features_batch_events,
        dead_letters=partial(maintainer.writes_dead_letters, hash_),
        admission=Admission({loop: newest}, TYPES, parts.privacy.mask, is_slow=parts.privacy.redacts),
        stored=worker.stored,
        on_assigned=worker.assigned,
    )
    consumer = Consumer(settings.kafka, group=stream_group(loop, hash_), topics=topics, types=TYPES, options=options)
    return LayoutStream(store, worker, consumer, topics)


def _quiet_garbage() -> None:
    """A batch makes and drops tens of thousands of objects, none in cycles; to look for such is a fifth of the time."""
    gc.freeze()
    gc.set_threshold(_GARBAGE_AFTER, 20, 20)
