"""Opens the connection to Redis and the online stores of a process."""

from gyre_core.features import Layout
from gyre_core.spec import LoopSpec
from gyre_runtime.settings import RedisSettings
from redis.asyncio import Redis

from gyre_features.online.store import OnlineStore
from gyre_features.settings import OnlineStoreSettings


def open_redis(settings: RedisSettings) -> Redis:
    """A new client that answers bytes; it connects when it is first used, and the caller closes it."""
    return Redis.from_url(settings.redis, socket_timeout=5, socket_connect_timeout=2, health_check_interval=30)


def open_store(settings: OnlineStoreSettings, redis: Redis, spec: LoopSpec, generation: int = 0) -> OnlineStore:
    """An `OnlineStore` of the layout that a spec declares: gyre.yaml's, or one beside it. Asks Redis nothing.

    Args:
        settings: of the store.
        redis: where it is.
        spec: the loop as the layout sees it.
        generation: which of the layout's stores it is, as `KnownLayout` says.
    """
    return OnlineStore(
        redis,
        spec,
        Layout.compile(spec),
        duplicates_s=settings.features_duplicates_s,
        max_popular=settings.features_max_popular,
        generation=generation,
    )
