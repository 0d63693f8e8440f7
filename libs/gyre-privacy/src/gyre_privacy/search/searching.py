"""Searches Kafka, Redis and folders for what stands for a person, and says which declared store each place is of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from gyre_runtime.errors import Unavailable
from gyre_runtime.kafka import read_records
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gyre_privacy.search.files import found_in
from gyre_privacy.search.needles import Needle
from gyre_privacy.stores import FILE, KAFKA, REDIS, StoreDecl, store_of

_SCANNED = 1000
_INTERNAL = "__"


@dataclass(frozen=True, slots=True)
class SearchedStores:
    """Where to search.

    Attributes:
        kafka: host:port list; empty for none.
        redis: URL; empty for none.
        folders: searched with all files below them, links left out.
        loop: only topics and keys that have this in their names; empty for all. Files are searched all the same.
    """

    kafka: str = ""
    redis: str = ""
    folders: Sequence[Path] = ()
    loop: str = ""


@dataclass
class SearchFindings:
    """All that a search found, in every place.

    Attributes:
        hits: places, each with the names of the needles that it holds.
        unread: places that could not be read, each with the reason: the person may be there.
        looked: how many topics, keys and files were looked at.
    """

    hits: dict[str, set[str]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    looked: int = 0

    def places(self, name: str) -> set[str]:
        """The places that hold a needle of this name."""
        return {place for place, names in self.hits.items() if name in names}

    def stores(self) -> dict[str, StoreDecl | None]:
        """Each place that holds the person, with its declared store; None says that none is declared."""
        return {place: store_of(place) for place in self.hits}

    def note(self, place: str, names: set[str]) -> None:
        """Add the names of the needles that a place holds; without any the place is no hit."""
        if names:
            self.hits.setdefault(place, set()).update(names)


async def search(places: SearchedStores, needles: Sequence[Needle]) -> SearchFindings:
    """Read all of these stores, and say where needles are; changes nothing.

    What cannot be read is in `unread`, and the search goes on: a person is nowhere only where that is empty, too.
    """
    finding = SearchFindings()
    if places.kafka:
        await _search_kafka(places, needles, finding)
    if places.redis:
        await _search_redis(places, needles, finding)
    for folder in places.folders:
        await asyncio.to_thread(_search_folder, folder, list(needles), finding)
    return finding


async def _search_kafka(places: SearchedStores, needles: Sequence[Needle], finding: SearchFindings) -> None:
    """Read every topic from its start: key, value and headers of each record."""
    kafka = AIOKafkaConsumer(bootstrap_servers=places.kafka)
    try:
        await kafka.start()
        topics = sorted(await kafka.topics())
    except KafkaError as error:
        finding.unread[KAFKA] = f"{type(error).__name__}: {error}"
        return
    finally:
        await kafka.stop()
    for topic in topics:
        if topic.startswith(_INTERNAL) or places.loop not in topic:
            continue
        finding.looked += 1
        try:
            async for record in read_records(places.kafka, topic):
                finding.note(f"{KAFKA}{topic}", _names(needles, _bytes_of(record)))
        except Unavailable as error:
            finding.unread[f"{KAFKA}{topic}"] = str(error)


def _bytes_of(record: Any) -> bytes:
    headers = [part for name, value in record.headers for part in (name.encode(), value or b"")]
    return b"\0".join((record.key or b"", record.value or b"", *headers))


async def _search_redis(places: SearchedStores, needles: Sequence[Needle], finding: SearchFindings) -> None:
    """Read every key with all that it holds, whatever its type."""
    try:
        async with Redis.from_url(places.redis) as redis:
            async for key in redis.scan_iter(f"*{places.loop}*" if places.loop else "*", count=_SCANNED):
                finding.looked += 1
                names = set(_names(needles, key))
                async for content in _content(redis, key):
                    names |= _names(needles, content)
                finding.note(f"{REDIS}{key.decode(errors='replace')}", names)
    except RedisError as error:
        finding.unread[REDIS] = f"{type(error).__name__}: {error}"


async def _content(redis: Any, key: bytes) -> AsyncIterator[bytes]:
    """Everything that a key holds; nothing where it went meanwhile."""
    kind = (await redis.type(key)).decode()
    scans = {"hash": redis.hscan_iter, "set": redis.sscan_iter, "zset": redis.zscan_iter}
    if kind == "string":
        yield await redis.get(key) or b""
    elif kind == "stream":
        for _, fields in await redis.xrange(key):
            yield b"\0".join(part for pair in fields.items() for part in pair)
    elif kind in scans:
        async for each in scans[kind](key, count=_SCANNED):
            yield b"\0".join(part for part in (each if isinstance(each, tuple) else (each,)) if isinstance(part, bytes))
    elif kind != "none":
        for each in await redis.lrange(key, 0, -1):
            yield each


def _search_folder(folder: Path, needles: list[Needle], finding: SearchFindings) -> None:
    """Read every file below a folder, its name included; one that goes meanwhile holds nobody."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        place = f"{FILE}{path}"
        finding.looked += 1
        try:
            names = found_in(path, needles) | _names(needles, str(path.relative_to(folder)).encode())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            finding.unread[place] = f"{type(error).__name__}: {error}"
            continue
        finding.note(place, names)


def _names(needles: Sequence[Needle], data: bytes) -> set[str]:
    return {each.name for each in needles if each.is_in(data)}
