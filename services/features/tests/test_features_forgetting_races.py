"""Forgetting beside what is under way: batches of a stopped stream, late fields, erasures, ids hashed since a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1.features_pb2 import BatchApplied
from gyre.features.v1 import features_pb2 as pb
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre_core.features import Layout, State
from gyre_core.keyring import Keyring
from gyre_core.layouts import KnownLayout, LayoutDefinition, LayoutState
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared, topic
from gyre_features.online.store import OnlineStore
from gyre_features.parity import AppliedBatch
from gyre_features.parity.replaying import BatchReplay, ValueKey
from gyre_features.processes.serve import serve
from gyre_features.settings import FeaturesSettings
from gyre_features.stream.loop_stream import LoopStream, feature_event
from gyre_local.testing import eventually
from gyre_privacy.search import SearchedStores, needles_of, search
from gyre_privacy.tombstones import Tombstones
from gyre_runtime import Lifespan, ServiceSettings, channel
from gyre_runtime.events import Event
from gyre_runtime.kafka import Producer, create_topics
from gyre_runtime.layouts import layout_message
from gyre_warehouse.tables import INTERACTIONS, ensure_table, open_catalog
from redis.asyncio import Redis

from .marked_user import MARKED, OTHER, ratings

BEGIN = 1_370_000_000.0
KEYRING = Keyring(b"k" * 32)
HMAC = "privacy: {user_id: hmac}\n"


@dataclass(frozen=True)
class Stores:
    """Where the processes of a test keep users, and the keys that they hash by."""

    kafka: str
    redis: Redis
    redis_url: str
    loop_file: Path
    key_file: Path

    def settings(self, *, wait_s: float) -> FeaturesSettings:
        """Of a process that forgets users, and waits so long for the archive."""
        return FeaturesSettings(
            loops=(self.loop_file,),
            kafka=self.kafka,
            redis=self.redis_url,
            drain_s=1,
            features_forget_wait_s=wait_s,
            privacy_key_file=self.key_file,
        )

    async def hold(self, loop: str, user: str) -> bool:
        """Whether any key of the loop in Redis, or anything in it, names a user."""
        return bool((await search(SearchedStores(redis=self.redis_url, loop=loop), needles_of([user]))).hits)


@pytest.fixture
def stores(kafka: str, redis: Redis, redis_url: str, loop_file: Path, privacy_key_file: Path) -> Stores:
    """Those of the session, for the test's loop."""
    return Stores(kafka, redis, redis_url, loop_file, privacy_key_file)


async def _forget(settings: FeaturesSettings, loop: str, user: str) -> pb.DeleteEntityResponse:
    async with Lifespan(drain_s=1) as lifespan:
        running = await serve(lifespan, settings)
        opened = await lifespan.enter(channel(running.server.address, ServiceSettings(), name="features"))
        request = pb.DeleteEntityRequest(loop=loop, kind=pb.ENTITY_KIND_USER, id=user)
        return await FeaturesServiceStub(opened).DeleteEntity(request, timeout=60)


def _stopped_before_apply(store: OnlineStore) -> tuple[asyncio.Event, asyncio.Event]:
    """Let the process stand still before it sends a batch: it sets the first event, and waits for the second."""
    stopped, go, apply = asyncio.Event(), asyncio.Event(), store.apply

    async def gated(*arguments: Any) -> Any:
        stopped.set()
        await go.wait()
        return await apply(*arguments)

    store.apply = gated  # type: ignore[method-assign]
    return stopped, go


@pytest.mark.adapter
@pytest.mark.parametrize("clock", ["replay", "wall"])
@pytest.mark.parametrize("is_known", [True, False], ids=["features", "late-events"])
async def test_a_stream_that_was_stopped_over_a_forgetting_brings_nobody_back(
    spec: LoopSpec, history: Any, stores: Stores, clock: str, is_known: bool
) -> None:
    """A batch that was prepared before a user was forgotten and sent afterwards holds the others' events alone."""
    spec = spec.model_copy(update={"clock": clock})
    await create_topics(stores.kafka, declared(spec))
    settings = stores.settings(wait_s=0.1)
    store = OnlineStore(stores.redis, spec, Layout.compile(spec))
    tombstones = Tombstones({spec.loop: spec}, Keyring.from_file(stores.key_file))
    async with tombstones.following(settings):
        stream = LoopStream(
            store,
            on_batch=_ignore,
            forgotten=tombstones.cover,
            read_tombstones=lambda: tombstones.catch_up(spec.loop),
        )
        await stream.apply(history.catalogue())
        events = ratings(history, *(("i1", "i2") if is_known else ("new-1", "new-2")))
        await stream.assigned([(events[0].topic, 0)])
        stopped, go = _stopped_before_apply(store)
        running = asyncio.create_task(stream.apply(events))
        await stopped.wait()
        answer = await _forget(settings, spec.loop, MARKED)
        assert answer.found_keys == 0
        go.set()
        await running
    assert await stores.hold(spec.loop, OTHER)
    assert not await stores.hold(spec.loop, MARKED)


async def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Watched:
    """A stream that knows who was forgotten, and the batches that it applied."""

    stream: LoopStream
    batches: list[AppliedBatch]

    @classmethod
    def over(cls, store: OnlineStore, tombstones: Tombstones) -> Watched:
        """One on a store."""
        batches = list[AppliedBatch]()

        async def note(batch: BatchApplied, kept: Sequence[Event]) -> None:
            time_s = batch.applied_time.ToNanoseconds() / 1e9
            batches.append(AppliedBatch(0, batch.batch, time_s, [feature_event(each) for each in kept]))

        read = partial(tombstones.catch_up, store.spec.loop)
        return cls(LoopStream(store, on_batch=note, forgotten=tombstones.cover, read_tombstones=read), batches)

    async def served(self, user: str) -> list[float]:
        """The sums of a user in the store."""
        value = (await self.stream.store.values([("user", user)]))["user", user]
        assert value is not None
        return list(State.unpack(self.stream.store.layout.slots("user"), value).sums)

    def replayed(self, user: str) -> list[float]:
        """The sums of a user that a replay of the batches comes to."""
        layout = self.stream.store.layout
        replay = BatchReplay(layout, shards=1, wanted=[ValueKey("user", user, batch.number) for batch in self.batches])
        replay.apply(self.batches)
        newest = replay.kept[max(replay.kept, key=lambda key: key.batch)]
        return list(State.unpack(layout.slots("user"), newest).sums)


def _genre(history: Any, genre: str, offset: int, *, time: float) -> Event:
    """A change of an item's genre."""
    genres = behavior.FieldValue(categories=behavior.Categories(values=[genre]))
    message = behavior.ItemChanged(item_id="i1", fields={"genres": genres})
    found: Event = history.event("catalog.items", message, offset, time=time)
    return found


@pytest.mark.adapter
@pytest.mark.parametrize("clock", ["replay", "wall"])
async def test_late_fields_correct_what_a_user_did_after_being_forgotten(
    spec: LoopSpec, history: Any, stores: Stores, clock: str
) -> None:
    """Who was forgotten and came back is corrected as anybody else: the store holds what a replay comes to."""
    spec = spec.model_copy(update={"clock": clock})
    await create_topics(stores.kafka, declared(spec))
    store = OnlineStore(stores.redis, spec, Layout.compile(spec))
    tombstones = Tombstones({spec.loop: spec}, Keyring.from_file(stores.key_file))
    settings = stores.settings(wait_s=0.1)
    async with tombstones.following(settings):
        watched = Watched.over(store, tombstones)
        await _forget(settings, spec.loop, MARKED)
        now = time.time()
        at = now if clock == "wall" else BEGIN
        (rating, _) = ratings(history, "i1")
        await watched.stream.apply([_genre(history, "action", 0, time=at - 100)])
        await watched.stream.apply([rating._replace(time=at, arrival_time=now)])
        first = await watched.served(MARKED)
        for number, genre in enumerate(("drama", "comedy"), start=1):
            await watched.stream.apply([_genre(history, genre, number, time=at - 100 + number)])
            assert await watched.served(MARKED) == pytest.approx(watched.replayed(MARKED))
    assert await watched.served(MARKED) != pytest.approx(first)


@pytest.mark.adapter
async def test_a_late_change_beside_a_forgetting_counts_once_for_the_others(
    spec: LoopSpec, history: Any, stores: Stores
) -> None:
    """A change prepared from buffered events of a user who goes meanwhile brings nobody back and doubles nobody's."""
    await create_topics(stores.kafka, declared(spec))
    store = OnlineStore(stores.redis, spec, Layout.compile(spec))
    tombstones = Tombstones({spec.loop: spec}, Keyring.from_file(stores.key_file))
    async with tombstones.following(stores.settings(wait_s=0.1)):
        watched = Watched.over(store, tombstones)
        await watched.stream.apply([_genre(history, "action", 0, time=BEGIN - 100)])
        await watched.stream.apply(ratings(history, "i1"))
        stopped, go = _stopped_before_apply(store)
        running = asyncio.create_task(watched.stream.apply([_genre(history, "drama", 1, time=BEGIN - 99)]))
        await stopped.wait()
        assert await store.delete_late_events(MARKED) == 1
        assert await store.delete("user", MARKED) == 1
        go.set()
        await running
        buffered = [each for _, member in await store.contributions(0, known=True, since=0) for each in member]
        assert [each.user_id for each in buffered] == [OTHER]
        assert not await stores.hold(spec.loop, MARKED)
        await watched.stream.apply([_genre(history, "comedy", 2, time=BEGIN - 98)])
        assert await watched.served(OTHER) == pytest.approx(watched.replayed(OTHER))


@pytest.mark.adapter
async def test_a_user_goes_from_buffers_that_a_late_change_rewrites_meanwhile(
    spec: LoopSpec, history: Any, redis: Redis
) -> None:
    """A late change between the look at the buffers and the deletion leaves no event of the user in them."""
    store, tombstones = OnlineStore(redis, spec, Layout.compile(spec)), Tombstones({spec.loop: spec}, KEYRING)
    watched = Watched.over(OnlineStore(redis, spec, store.layout), tombstones)
    await watched.stream.apply([_genre(history, "action", 0, time=BEGIN - 100)])
    await watched.stream.apply(ratings(history, "i1"))
    replace, changes = store._replace, [_genre(history, "drama", 1, time=BEGIN - 99)]

    async def late(**arguments: Any) -> Any:
        while changes:
            await watched.stream.apply([changes.pop()])
        return await replace(**arguments)

    store._replace = late  # type: ignore[assignment]  # the change comes between the two
    assert await store.delete_late_events(MARKED) == 1
    buffered = [each for _, member in await store.contributions(0, known=True, since=0) for each in member]
    assert [each.user_id for each in buffered] == [OTHER]


@pytest.mark.adapter
async def test_who_is_forgotten_during_a_start_goes_from_every_layout(
    spec: LoopSpec, history: Any, stores: Stores
) -> None:
    """A call that comes before the topic of layouts was read waits for it, and empties the store of each."""
    await create_topics(stores.kafka, declared(spec))
    layout = Layout.compile(spec)
    stream = LoopStream(OnlineStore(stores.redis, spec, layout, generation=1), on_batch=_ignore)
    await stream.apply(history.catalogue())
    events = ratings(history, "new-1", "new-2")
    await stream.assigned([(events[0].topic, 0)])
    await stream.apply(events)
    now = time.time()
    known = KnownLayout(layout.hash, LayoutDefinition.of(spec), LayoutState.READY, now, now, generation=1)
    async with Producer(stores.kafka, source="test") as producer:
        await producer.send(topic(spec.loop, "features.layouts"), layout_message(spec.loop, known), key=layout.hash)
    settings = stores.settings(wait_s=0.1)
    answer = await _forget(settings, spec.loop, MARKED)
    assert answer.found_keys == 0
    assert await stores.hold(spec.loop, OTHER)
    assert not await stores.hold(spec.loop, MARKED)


@pytest.mark.adapter
async def test_a_stream_applies_events_while_many_are_forgotten(
    spec: LoopSpec, history: Any, kafka: str, redis: Redis
) -> None:
    """Users who are forgotten without a pause do not keep a stream from applying its batches."""
    await create_topics(kafka, declared(spec))
    store, tombstones = OnlineStore(redis, spec, Layout.compile(spec)), Tombstones({spec.loop: spec}, KEYRING)
    ended = asyncio.Event()

    async def forget() -> None:
        while not ended.is_set():
            await store.refuse_prepared_batches()

    async with tombstones.following(FeaturesSettings(kafka=kafka)):
        stream = LoopStream(
            store,
            on_batch=_ignore,
            forgotten=tombstones.cover,
            read_tombstones=lambda: tombstones.catch_up(spec.loop),
        )
        await stream.apply(history.catalogue())
        events = history.ratings(300)
        await stream.assigned([(events[0].topic, 0)])
        forgetting = [asyncio.create_task(forget()) for _ in range(20)]
        applying = asyncio.create_task(stream.apply(events))
        done, _ = await asyncio.wait([applying], timeout=60)
        ended.set()
        await asyncio.gather(*forgetting)
        await applying
    assert done, "the stream applied nothing while users were forgotten"


def _hash_ids_from_now_on(loop_file: Path, key_file: Path) -> str:
    """Set `user_id: hmac` in a loop's file; answer the marked user's hash."""
    loop_file.write_text(loop_file.read_text() + HMAC)
    return Keyring.from_file(key_file).token(MARKED, domain="user")


@pytest.mark.adapter
async def test_who_is_forgotten_goes_under_raw_id_and_hash(
    tmp_path: Path,
    spec: LoopSpec,
    history: Any,
    stores: Stores,
    start_process: Callable[..., Any],
    produce: Callable[..., Awaitable[None]],
) -> None:
    """Where `user_id: hmac` is set later, what stands under the raw id goes with what stands under the hash."""
    await create_topics(stores.kafka, declared(spec))
    catalog, key = open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse"))), str(stores.key_file)

    def rows() -> list[str]:
        return list(ensure_table(catalog, spec.loop, INTERACTIONS).scan().to_arrow()["user_id"].to_pylist())

    def start() -> list[Any]:
        archive = start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2", GYRE_PRIVACY_KEY_FILE=key)
        return [start_process("stream", GYRE_PRIVACY_KEY_FILE=key), archive]

    async def applied(count: int) -> bool:
        places = [(topic(spec.loop, "behavior.interactions"), each) for each in range(2)]
        (found,) = await OnlineStore(stores.redis, spec, Layout.compile(spec)).applied_offsets(places)
        return sum(found.values()) >= count and len(rows()) == count

    await produce([*history.catalogue(), *ratings(history, "i1", "i2")])
    processes = start()
    await eventually(lambda: applied(4), timeout_s=60, message="the events stand in both stores")
    for process in processes:
        process.terminate()
        process.wait()
    token = _hash_ids_from_now_on(stores.loop_file, stores.key_file)
    start()
    await produce(ratings(history, "i3", start=4))
    await eventually(lambda: applied(6), timeout_s=60, message="the later events stand in both stores")
    assert sorted(rows().count(each) for each in (MARKED, token)) == [1, 2]
    settings = stores.settings(wait_s=25)
    answer = await _forget(settings, spec.loop, MARKED)
    assert (answer.warehouse_erased, answer.found_keys, answer.found_rows) == (True, 0, 0)
    assert answer.erased_rows[INTERACTIONS] == 3
    assert not {MARKED, token} & set(rows())
    assert not await stores.hold(spec.loop, MARKED)
    assert not await stores.hold(spec.loop, token)
