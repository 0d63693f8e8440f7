"""`stream`: Kafka to Redis. Begins at the fences of the store, the catalogue before behaviour."""

import gc
from functools import partial

from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.topics import topic
from gyre_privacy.masking import Privacy, open_privacy
from gyre_privacy.redaction import redactor
from gyre_runtime import Dependency, Lifespan, build_server, load_loops
from gyre_runtime.admission import Admission
from gyre_runtime.events import message_types
from gyre_runtime.kafka import Consumer, ConsumerOptions, ConsumerWork, Producer, ensure_topics

from gyre_features.online.connection import open_redis, open_store
from gyre_features.online.leases import keep_leases
from gyre_features.online.store import OnlineStore
from gyre_features.privacy.tombstones import Tombstones
from gyre_features.settings import StreamSettings
from gyre_features.stream.worker import CATALOGUE, StreamWorker

GROUP = "features-stream"
TOPICS = ("behavior.impressions", "behavior.interactions", CATALOGUE, "catalog.users")
TYPES = message_types(behavior.Impression, behavior.Interaction, behavior.ItemChanged, behavior.UserChanged)
_BATCHES_AT_ONCE = 4
_GARBAGE_AFTER = 100_000


async def stream(lifespan: Lifespan, settings: StreamSettings) -> None:
    """Wire the process; it listens, and is not ready, while Kafka or Redis is away."""
    loops = load_loops(settings)
    privacy = open_privacy(settings, loops, redactor)
    redis = await lifespan.enter(open_redis(settings))
    stores = [open_store(settings, redis, spec) for spec in loops.values()]
    producer = await lifespan.enter(Producer(settings.kafka, source="gyre/features-stream"))
    tombstones = Tombstones(loops)
    lifespan.depends_on(Dependency("redis", stores[0].ping))
    lifespan.depends_on(Dependency("kafka", producer.ping))
    await lifespan.serve(build_server(settings, [], health=lifespan.health))
    lifespan.background("leases", keep_leases(stores))
    lifespan.background("tombstones", tombstones.follow(settings))

    async def follow() -> None:
        await ensure_topics(settings, loops.values())
        _quiet_garbage()
        for store in stores:
            lifespan.for_loop(store.spec.loop, partial(_loop_work, settings, store, producer, tombstones, privacy))

    lifespan.set_up("topics", follow())


def _loop_work(
    settings: StreamSettings, store: OnlineStore, producer: Producer, tombstones: Tombstones, privacy: Privacy
) -> ConsumerWork:
    """What reads a loop's events from the store's checkpoints on, and applies them."""
    worker = StreamWorker(store, producer, most_events=settings.features_batch_events, forgotten=tombstones.cover)
    spec = store.spec
    consumer = Consumer(
        settings.kafka,
        group=f"{GROUP}-{spec.loop}",
        topics=[topic(spec.loop, suffix) for suffix in TOPICS],
        types=TYPES,
        options=ConsumerOptions(
            max_records=_BATCHES_AT_ONCE * settings.features_batch_events,
            admission=Admission({spec.loop: spec}, TYPES, privacy.mask),
            stored=worker.stored,
            on_assigned=worker.assigned,
        ),
    )
    return ConsumerWork(consumer, worker.apply, ready=tombstones.ready, close=worker.close)


def _quiet_garbage() -> None:
    """A batch makes and drops tens of thousands of objects, none in cycles; to look for such is a fifth of the time."""
    gc.freeze()
    gc.set_threshold(_GARBAGE_AFTER, 20, 20)
