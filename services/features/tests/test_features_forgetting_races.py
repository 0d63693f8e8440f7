"""Forgetting beside what is under way: batches of a stopped stream, erasures cut short, ids hashed since a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import privacy_pb2 as privacy
from gyre.features.v1 import features_pb2 as pb
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre_core.features import Layout
from gyre_core.keyring import Keyring
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared, topic
from gyre_features.online.store import OnlineStore
from gyre_features.privacy.erasure import ERASED, Eraser
from gyre_features.processes.serve import serve
from gyre_features.settings import FeaturesSettings
from gyre_features.stream.loop_stream import LoopStream
from gyre_features.warehouse.archive import Archive
from gyre_local.testing import eventually
from gyre_privacy.pseudonyms import user_hash
from gyre_privacy.search import SearchedStores, needles_of, search
from gyre_privacy.tombstones import Tombstones
from gyre_runtime import Lifespan, ServiceSettings, Unavailable, channel
from gyre_runtime.events import Event
from gyre_runtime.kafka import Producer, create_topics, read_compacted
from gyre_warehouse.tables import INTERACTIONS, ensure_table, open_catalog
from redis.asyncio import Redis

MARKED, OTHER = "marked-7f3a91", "somebody-else"
HMAC = "privacy: {user_id: hmac}\n"


def _ratings(history: Any, *items: str, start: int = 0) -> list[Event]:
    pairs = [(user, item) for user in (MARKED, OTHER) for item in items]
    return [
        history.event(
            "behavior.interactions",
            behavior.Interaction(user_id=user, item_id=item, type="rating", value=7),
            number,
        )
        for number, (user, item) in enumerate(pairs, start=start)
    ]


def _settings(loop_file: Path, kafka: str, redis_url: str, key_file: Path, *, wait_s: float) -> FeaturesSettings:
    """Of a process that forgets users, and waits so long for the archive."""
    return FeaturesSettings(
        loops=(loop_file,),
        kafka=kafka,
        redis=redis_url,
        drain_s=1,
        features_forget_wait_s=wait_s,
        privacy_key_file=key_file,
    )


async def _forget(settings: FeaturesSettings, loop: str, user: str) -> pb.DeleteEntityResponse:
    async with Lifespan(drain_s=1) as lifespan:
        running = await serve(lifespan, settings)
        opened = await lifespan.enter(channel(running.server.address, ServiceSettings(), name="features"))
        request = pb.DeleteEntityRequest(loop=loop, kind=pb.ENTITY_KIND_USER, id=user)
        return await FeaturesServiceStub(opened).DeleteEntity(request, timeout=60)


async def _holds(redis_url: str, loop: str, user: str) -> bool:
    """Whether any key of the loop, or anything in it, names a user."""
    return bool((await search(SearchedStores(redis=redis_url, loop=loop), needles_of([user]))).hits)


@pytest.mark.adapter
@pytest.mark.parametrize("clock", ["replay", "wall"])
@pytest.mark.parametrize("is_known", [True, False], ids=["features", "late-events"])
async def test_a_stream_that_was_stopped_over_a_forgetting_brings_nobody_back(  # noqa: PLR0917 (fixtures)
    spec: LoopSpec,
    history: Any,
    kafka: str,
    redis: Redis,
    redis_url: str,
    loop_file: Path,
    privacy_key_file: Path,
    clock: str,
    is_known: bool,
) -> None:
    """A batch that was prepared before a user was forgotten and sent afterwards holds the others' events alone."""
    spec = spec.model_copy(update={"clock": clock})
    await create_topics(kafka, declared(spec))
    settings = _settings(loop_file, kafka, redis_url, privacy_key_file, wait_s=0.1)
    store = OnlineStore(redis, spec, Layout.compile(spec))
    tombstones = Tombstones({spec.loop: spec}, Keyring.from_file(privacy_key_file))
    async with tombstones.following(settings):
        stream = LoopStream(
            store,
            on_batch=_ignore,
            forgotten=tombstones.cover,
            read_tombstones=lambda: tombstones.catch_up(spec.loop),
        )
        await stream.apply(history.catalogue())
        events = _ratings(history, *(("i1", "i2") if is_known else ("new-1", "new-2")))
        await stream.assigned([(events[0].topic, 0)])
        stopped, go, apply = asyncio.Event(), asyncio.Event(), store.apply

        async def gated(*arguments: Any) -> Any:
            stopped.set()
            await go.wait()
            return await apply(*arguments)

        store.apply = gated  # type: ignore[method-assign]  # the process stands still before it sends the batch
        running = asyncio.create_task(stream.apply(events))
        await stopped.wait()
        answer = await _forget(settings, spec.loop, MARKED)
        assert answer.found_keys == 0
        go.set()
        await running
    assert await _holds(redis_url, spec.loop, OTHER)
    assert not await _holds(redis_url, spec.loop, MARKED)


async def _ignore(*_: object) -> None:
    pass


class _FirstFails:
    """A producer of which the first send fails, before Kafka has anything."""

    def __init__(self, producer: Producer, error: BaseException) -> None:
        self._producer, self._error = producer, error
        self.failed = asyncio.Event()

    async def send(self, *arguments: Any, **options: Any) -> None:
        """Send, or fail."""
        if not self.failed.is_set():
            self.failed.set()
            raise self._error
        await self._producer.send(*arguments, **options)


class _Killed(Exception):  # noqa: N818 - no error: it stands for the end of a process
    """The process ends here."""


@pytest.mark.adapter
@pytest.mark.parametrize("error", [Unavailable("KAFKA_UNAVAILABLE", "away"), _Killed()], ids=["refused", "killed"])
async def test_what_was_erased_is_published_whole_by_a_later_try(
    tmp_path: Path, spec: LoopSpec, history: Any, kafka: str, error: Exception
) -> None:
    """Rows and snapshots that went before Kafka could take the report stand in the report that it takes later."""
    await create_topics(kafka, declared(spec))
    catalog, keyring = open_catalog(FeaturesSettings(warehouse=str(tmp_path))), Keyring(b"k" * 32)
    archive = Archive(catalog, rows=1000, seconds=60, payload_bytes=10**9)
    for number in range(3):
        await archive.add(_ratings(history, f"i{number}", start=2 * number))
        await archive.flush()
    table = ensure_table(catalog, spec.loop, INTERACTIONS)
    read = {each.snapshot_id for each in table.snapshots()}
    message = privacy.UserForgotten(user_hash=user_hash(keyring, spec.loop, MARKED))
    message.forgotten_time.GetCurrentTime()

    async def reports() -> list[privacy.UserErased]:
        events = await read_compacted(kafka, topic(spec.loop, "privacy.erasures"), ERASED)
        return [each.message for each in events.values()]

    async with Producer(kafka, source="test") as producer:
        flaky, kept_s = _FirstFails(producer, error), {spec.loop: 1e6}
        eraser = Eraser({spec.loop: archive}, flaky, kafka, keyring, kept_s)  # type: ignore[arg-type]  # its one method
        eraser.note(spec.loop, message)
        running = asyncio.create_task(eraser.run())
        await flaky.failed.wait()
        if isinstance(error, _Killed):
            with suppress(_Killed):
                await running
            archive = Archive(catalog, rows=1000, seconds=60, payload_bytes=10**9)
            eraser = Eraser({spec.loop: archive}, producer, kafka, keyring, kept_s)
            eraser.note(spec.loop, message)
            running = asyncio.create_task(eraser.run())
        (report,) = await eventually(reports, timeout_s=30, message="the erasure is published")
        assert report.rows[INTERACTIONS] == 3
        assert read <= set(report.expired[INTERACTIONS].ids)
        assert report.found_rows == 0

        def left() -> set[str]:
            table.refresh()
            return {name for name in table.properties if "erasure" in name}

        await eventually(lambda: not left(), timeout_s=30, message="the note of what went is gone")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _hash_ids_from_now_on(loop_file: Path, key_file: Path) -> str:
    """Set `user_id: hmac` in a loop's file; answer the marked user's hash."""
    loop_file.write_text(loop_file.read_text() + HMAC)
    return Keyring.from_file(key_file).token(MARKED, domain="user")


@pytest.mark.adapter
async def test_who_is_forgotten_goes_under_raw_id_and_hash(  # noqa: PLR0917 (fixtures)
    tmp_path: Path,
    spec: LoopSpec,
    history: Any,
    kafka: str,
    redis: Redis,
    redis_url: str,
    loop_file: Path,
    start_process: Callable[..., Any],
    produce: Callable[..., Awaitable[None]],
    privacy_key_file: Path,
) -> None:
    """Where `user_id: hmac` is set later, what stands under the raw id goes with what stands under the hash."""
    await create_topics(kafka, declared(spec))
    catalog, key = open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse"))), str(privacy_key_file)

    def rows() -> list[str]:
        return list(ensure_table(catalog, spec.loop, INTERACTIONS).scan().to_arrow()["user_id"].to_pylist())

    def start() -> list[Any]:
        archive = start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2", GYRE_PRIVACY_KEY_FILE=key)
        return [start_process("stream", GYRE_PRIVACY_KEY_FILE=key), archive]

    async def applied(count: int) -> bool:
        places = [(topic(spec.loop, "behavior.interactions"), each) for each in range(2)]
        (found,) = await OnlineStore(redis, spec, Layout.compile(spec)).applied_offsets(places)
        return sum(found.values()) >= count and len(rows()) == count

    await produce([*history.catalogue(), *_ratings(history, "i1", "i2")])
    processes = start()
    await eventually(lambda: applied(4), timeout_s=60, message="the events stand in both stores")
    for process in processes:
        process.terminate()
        process.wait()
    token = _hash_ids_from_now_on(loop_file, privacy_key_file)
    start()
    await produce(_ratings(history, "i3", start=4))
    await eventually(lambda: applied(6), timeout_s=60, message="the later events stand in both stores")
    assert sorted(rows().count(each) for each in (MARKED, token)) == [1, 2]
    settings = _settings(loop_file, kafka, redis_url, privacy_key_file, wait_s=25)
    answer = await _forget(settings, spec.loop, MARKED)
    assert (answer.warehouse_erased, answer.found_keys, answer.found_rows) == (True, 0, 0)
    assert answer.erased_rows[INTERACTIONS] == 3
    assert not {MARKED, token} & set(rows())
    assert not await _holds(redis_url, spec.loop, MARKED)
    assert not await _holds(redis_url, spec.loop, token)
