"""The search for a person: every format that a store writes, and what cannot be read."""

import gzip
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiokafka import AIOKafkaProducer
from gyre_core.keyring import Keyring
from gyre_core.topics import TOPICS, Topic
from gyre_local.components import kafka as kafka_component
from gyre_local.process import Process, running
from gyre_local.reserve import free_ports
from gyre_local.testing import HOST
from gyre_privacy.pseudonyms import user_hash
from gyre_privacy.search import SearchedStores, needles_of, search
from gyre_privacy.stores import KAFKA, REDIS, STORES, store_of
from gyre_runtime.kafka import create_topics
from redis.asyncio import Redis

MARKED = "marked-7f3a91"
KEYS = Keyring(b"k" * 32)
NEEDLES = needles_of([MARKED], KEYS, loop="shop")


def _parquet(path: Path) -> None:
    lists = pa.array([["a", "b"], [MARKED]], pa.list_(pa.string()))
    pairs = pa.array([[("a", "b")], [("c", "d")]], pa.map_(pa.string(), pa.string()))
    table = pa.table({"n": [1, 2], "items": lists, "pairs": pairs})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)


def _free_pages(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("pragma secure_delete = off")
        database.execute("create table users (id text)")
        database.executemany("insert into users values (?)", [(MARKED,), ("other",)])
        database.commit()
        database.execute("delete from users where id = ?", (MARKED,))
        database.commit()


def _long_value(path: Path) -> None:
    # The page of 512 bytes ends within the id, whatever comes before it.
    with closing(sqlite3.connect(path)) as database:
        database.execute("pragma page_size = 512")
        database.execute("create table texts (content text)")
        database.execute("insert into texts values (?)", ("·".join([MARKED] * 2).join(["x" * 500] * 2),))
        database.executemany("insert into texts values (?)", [("x" * at + MARKED,) for at in range(440, 520)])
        database.commit()


def _wal(path: Path) -> None:
    writer = sqlite3.connect(path)
    writer.execute("pragma journal_mode = wal")
    writer.execute("pragma wal_autocheckpoint = 0")
    writer.execute("create table users (id text)")
    writer.execute("insert into users values (?)", (MARKED,))
    writer.commit()
    log = path.with_name(f"{path.name}-wal").read_bytes()
    writer.close()
    path.unlink()
    path.with_name(f"{path.name}-wal").write_bytes(log)


WRITERS: dict[str, Callable[[Path], None]] = {
    "rows.parquet": _parquet,
    "free.db": _free_pages,
    "long.db": _long_value,
    "ahead.db": _wal,
    "lines.json.gz": lambda path: path.write_bytes(gzip.compress(b"x" * 3_000_000 + MARKED.encode())),
    "arrays.npz": lambda path: np.savez_compressed(path, users=np.array([MARKED.encode()])),
    "hash.bin": lambda path: path.write_bytes(b"\0" + user_hash(KEYS, "shop", MARKED)),
    f"{MARKED}.txt": lambda path: path.write_text("empty of it"),
}


@pytest.mark.parametrize("name", WRITERS)
async def test_every_format_of_files_is_decoded(name: str, tmp_path: Path) -> None:
    """The person is found in compressed columns, free pages, long values, write-ahead logs, archives and names."""
    WRITERS[name](tmp_path / name)
    (tmp_path / "other.txt").write_text("somebody-else")
    finding = await search(SearchedStores(folders=[tmp_path]), NEEDLES)
    assert [Path(place).name.removesuffix("-wal") for place in finding.hits] == [name]
    assert not finding.unread


async def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    """A file that is not of the format it begins as is no proof that nobody is in it."""
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    finding = await search(
        SearchedStores(kafka="127.0.0.1:1", redis="redis://127.0.0.1:1/0", folders=[tmp_path]), NEEDLES
    )
    assert set(finding.unread) == {KAFKA, REDIS, f"file:{tmp_path / 'torn.parquet'}"}


@pytest.mark.adapter
@pytest.mark.parametrize("codec", [None, "gzip", "lz4", "zstd", "snappy"])
async def test_topics_and_their_segments_are_read(
    codec: str | None, kafka: str, kafka_process: Process, loop_name: str
) -> None:
    """Key, value or header of a record is found by consuming, and on the broker's disk, whatever compresses it."""
    name = f"{loop_name}.behavior.interactions"
    await create_topics(kafka, [Topic(name, "user id", "", 1, None, compacted=False, owner="test")])
    async with AIOKafkaProducer(bootstrap_servers=kafka, compression_type=codec) as producer:
        for record in ({"key": MARKED.encode()}, {"headers": [("user", MARKED.encode())]}):
            await producer.send_and_wait(name, b"x" * 5000 + b"value", **record)
    folder = kafka_process.recipe.directory
    finding = await search(SearchedStores(kafka=kafka, folders=[folder], loop=loop_name), NEEDLES)
    segments = [place for place in finding.hits if place.endswith(".log") and loop_name in place]
    assert f"{KAFKA}{name}" in finding.hits
    assert len(segments) == 1
    assert {getattr(store, "name", "") for store in finding.stores().values()} == {
        "behaviour topics",
        "Kafka's segments",
    }


@pytest.mark.adapter
async def test_every_type_of_key_is_read(redis_url: str, loop_name: str) -> None:
    """Keys and members of all types are found, those of former formats, too, and nothing else."""
    async with Redis.from_url(redis_url) as redis:
        value = b"\x01" + MARKED.encode() + b"\x02"
        names = [f"gyre2:{{{loop_name}:0}}:abc:{kind}" for kind in ("string", "list", "hash", "set", "zset", "stream")]
        await redis.set(names[0], value)
        await redis.rpush(names[1], value)
        await redis.hset(names[2], "field", value)
        await redis.sadd(names[3], value)
        await redis.zadd(names[4], {value: 1.0})
        await redis.xadd(names[5], {b"field": value})
        former = f"gyre:{loop_name}:abc:{{0}}:user:{MARKED}"
        await redis.set(former, b"1")
        await redis.set(f"gyre2:{{{loop_name}:0}}:abc:user:other", b"1")
        finding = await search(SearchedStores(redis=redis_url, loop=loop_name), NEEDLES)
        await redis.delete(former, *names, f"gyre2:{{{loop_name}:0}}:abc:user:other")
    assert finding.places("id") == {f"{REDIS}{name}" for name in (*names, former)}


async def _write_each_type(redis: Redis, name: str, value: bytes) -> list[str]:
    """Keys of all types that hold a value behind another that is like it."""
    like = value.replace(b"7f3a91", b"7f3a90")
    filled, pairs = b"x" * 60, [b"|" + like, b"|" + value]
    names = [f"{name}:{kind}" for kind in ("string", "list", "hash", "set", "zset", "stream")]
    await redis.set(names[0], filled + b"".join(pairs))
    await redis.rpush(names[1], filled, *pairs)
    await redis.hset(names[2], mapping={"a": filled, pairs[0]: b"1", pairs[1]: b"1"})
    await redis.sadd(names[3], filled + b"".join(pairs))
    await redis.zadd(names[4], {filled: 0.0, pairs[0]: 1.0, pairs[1]: 2.0})
    await redis.xadd(names[5], {b"a": filled, b"b": pairs[0], b"c": pairs[1]})
    return names


@pytest.mark.adapter
@pytest.mark.parametrize("kind", range(6))
async def test_compressed_snapshots_are_read(redis_url: str, loop_name: str, kind: int, tmp_path: Path) -> None:
    """A person is found in a snapshot that Redis compressed, whatever the type of the key, and nobody else is."""
    folder = tmp_path / "redis"
    folder.mkdir()
    async with Redis.from_url(redis_url) as redis:
        before = (await redis.config_get("rdbcompression"))["rdbcompression"]
        names = await _write_each_type(redis, loop_name, MARKED.encode())
        await redis.delete(*(each for place, each in enumerate(names) if place != kind))
        try:
            await redis.config_set("rdbcompression", "yes")
            await redis.save()
            made = Path((await redis.config_get("dir"))["dir"]) / "dump.rdb"
            made.rename(folder / "dump.rdb")
        finally:
            await redis.config_set("rdbcompression", before)
            await redis.delete(*names)
    assert MARKED.encode() not in (folder / "dump.rdb").read_bytes()
    finding = await search(SearchedStores(folders=[folder]), NEEDLES)
    assert finding.places("id") == {f"file:{folder / 'dump.rdb'}"}
    assert not (await search(SearchedStores(folders=[folder]), needles_of(["marked-7f3a92"]))).hits


@pytest.mark.adapter
async def test_ids_that_are_numbers_are_found_in_snapshots(redis_url: str, loop_name: str, tmp_path: Path) -> None:
    """Redis packs whole numbers as such, as values and as members of lists and sets; they are found all the same."""
    async with Redis.from_url(redis_url) as redis:
        for user in ("-70001", "8123457", "2147483001", "9007199254740995"):
            folder = tmp_path / user
            folder.mkdir()
            await redis.rpush(loop_name, user, "other")
            await redis.sadd(f"{loop_name}:set", "77777", user)
            for key in (loop_name, f"{loop_name}:set"):
                await redis.save()
                (Path((await redis.config_get("dir"))["dir"]) / "dump.rdb").rename(folder / "dump.rdb")
                assert (await search(SearchedStores(folders=[folder]), needles_of([user]))).hits, (key, user)
                assert not (await search(SearchedStores(folders=[folder]), needles_of([f"{user}1"]))).hits, user
                await redis.delete(key)


def test_every_topic_of_users_is_of_a_declared_store() -> None:
    """A topic whose key is a user id, and its dead letters, belong to a store that says until when it may hold."""
    for decl in TOPICS:
        if decl.key in {"user id", "user hash"}:
            assert store_of(f"{KAFKA}shop.{decl.suffix}") is not None, decl.suffix
            assert store_of(f"{KAFKA}shop.{decl.suffix}.dlq") is STORES[0]


@pytest.fixture
def empty_kafka(tmp_path: Path) -> Iterator[str]:
    """A broker without the topics of other tests, since the command reads them all."""
    broker, controller = free_ports(2)
    address = kafka_component.BrokerAddress(HOST, broker=broker, controller=controller)
    recipe = kafka_component.prepare(tmp_path / "kafka", address, quick_start=True)
    with running(recipe, log=tmp_path / "kafka.log"):
        yield f"{HOST}:{broker}"


@pytest.mark.adapter
def test_operators_search_by_command(tmp_path: Path, empty_kafka: str, redis_url: str) -> None:
    """`python -m gyre_privacy search` names each place, its store and until when, and leaves with 1."""
    key_file = tmp_path / "keys.json"
    key_file.write_text(json.dumps({"stable": "ab" * 32}))
    data = tmp_path / "data"
    data.mkdir()
    (data / "monitor.db").write_bytes(user_hash(Keyring.from_file(key_file), "shop", "nobody-52c"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GYRE_")}
    environment |= {"GYRE_KAFKA": empty_kafka, "GYRE_REDIS": redis_url, "GYRE_PRIVACY_KEY_FILE": str(key_file)}
    command = [sys.executable, "-m", "gyre_privacy", "search", "shop", "nobody-52c", str(data)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert f"{data / 'monitor.db'}: hash (monitor's database, until: at once;" in found.stdout
    assert found.returncode == 1
    (data / "monitor.db").unlink()
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
