"""A loop in operation without its processes, for tests of the parity check: a real store, a real warehouse."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as events_pb2
from gyre_core.features import Layout, Reader, RequestContext
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_features.online.store import OnlineStore
from gyre_features.parity.loop import LoopReport, check_loop
from gyre_features.parity.served import CheckWindow
from gyre_features.settings import FeaturesSettings
from gyre_features.stream.loop_stream import LoopStream
from gyre_features.warehouse.archive import Archive
from gyre_runtime.events import Event
from gyre_warehouse.tables import (
    TABLE_OF,
    append,
    arrow_schema,
    checkpoints_of,
    ensure_table,
    open_catalog,
)
from redis.asyncio import Redis

BEGIN = 1_370_000_000.0
ITEMS = [f"i{number}" for number in range(12)]
DUPLICATES_S = 300
SUFFIX_OF = {name: suffix for suffix, name in TABLE_OF.items()}


@dataclass
class Loop:
    """A loop in operation, without its processes: the stream's work, the archive's, and reads that are logged.

    Attributes:
        lost: numbers of batches that the log does not get.
    """

    spec: LoopSpec
    redis: Redis
    warehouse: Path
    lost: set[int] = field(default_factory=set)
    offsets: dict[str, int] = field(default_factory=dict)
    reads: int = 0

    def __post_init__(self) -> None:
        self.layout = Layout.compile(self.spec)
        self.store = OnlineStore(self.redis, self.spec, self.layout, duplicates_s=DUPLICATES_S)
        self.catalog = open_catalog(FeaturesSettings(warehouse=str(self.warehouse)))
        self.archive = Archive(self.catalog, rows=100_000, seconds=60, payload_bytes=10**9)
        self.stream = LoopStream(self.store, on_batch=self.note, max_events=40)

    async def assign(self) -> None:
        """Begin where the store stands."""
        self.stream = LoopStream(self.store, on_batch=self.note, max_events=40)
        await self.stream.assigned(
            [(topic(self.spec.loop, each), 0) for each in ("catalog.items", "behavior.interactions")]
        )

    def event(self, suffix: str, message: Any, at: float, *, id: str | None = None) -> Event:  # noqa: A002
        """The next record of a topic's one partition."""
        offset = self.offsets[suffix] = self.offsets.get(suffix, -1) + 1
        name = id or f"{suffix}-{offset}"
        return Event(name, "test", "", at, message, None, topic(self.spec.loop, suffix), 0, offset, "k", time.time())

    async def feed(self, events: Sequence[Event]) -> None:
        """Events through the stream and into the archive."""
        await self.archive.add(events)
        await self.stream.apply(events)

    async def note(self, batch: events_pb2.BatchApplied, _events: Sequence[Event]) -> None:
        """Log a batch as the stream's process does."""
        if batch.batch not in self.lost:
            await self.archive.add([self.event("features.applied", batch, batch.applied_time.ToNanoseconds() / 1e9)])

    async def read(self, user_id: str, now: float, *, wrong: float = 0.0, age_s: float = 0.0) -> None:
        """Read features as they are served, and log the impression; `wrong` is added to the first number."""
        values = await self.store.read(user_id, ITEMS)
        reader = Reader(self.layout)
        matrix, age = reader.matrix(values.user, values.everyone, values.items, ITEMS, RequestContext(now))
        matrix[0, 0] += wrong
        order = random.Random(self.reads).sample(range(len(ITEMS)), len(ITEMS))
        self.reads += 1
        message = behavior.Impression(
            request_id=f"r{self.reads}", user_id=user_id, item_ids=[ITEMS[each] for each in order], shown=5, rest=7,
            positions=order, item_batches=[int(age.item_batches[each]) for each in order],
            user_batch=age.user_batch, global_batch=age.global_batch,
        )  # fmt: skip
        block = message.features
        block.layout, block.rows, block.columns = self.layout.hash, len(ITEMS), len(self.layout.columns)
        block.values = matrix[order].astype("<f4").tobytes()
        event = self.event("behavior.impressions", message, now)
        await self.feed([event._replace(arrival_time=time.time() - age_s)])

    async def check(self, *, most: int = 10_000) -> LoopReport:
        """Everything into the warehouse, then the check."""
        await self.archive.flush()
        return check_loop(self.catalog, self.spec, window=CheckWindow(most, 0.0), duplicates_s=DUPLICATES_S)


def ratings(loop: Loop, count: int, *, step: int, users: int = 6) -> list[Event]:
    """The next ratings, of a few users, a little out of order, one in ten sent twice."""
    draw, made = random.Random(step), []
    for number in range(count):
        message = behavior.Interaction(
            user_id=f"u{draw.randrange(users)}", item_id=draw.choice(ITEMS), type="rating", value=draw.randrange(10)
        )
        at, name = BEGIN + 600 * step + draw.random() * 600, f"s{step}-{number}"
        made.append(loop.event("behavior.interactions", message, at, id=name))
        if draw.random() < 0.1:
            made.append(loop.event("behavior.interactions", message, at, id=name))
    return made


def catalogue(loop: Loop, step: int) -> list[Event]:
    """Every third item, with fields that change with the step."""
    genres = ("action", "drama", "comedy")
    return [
        loop.event(
            "catalog.items",
            behavior.ItemChanged(
                item_id=item,
                fields={
                    "genres": behavior.FieldValue(categories=behavior.Categories(values=[genres[(number + step) % 3]])),
                    "price": behavior.FieldValue(number=number + step),
                },
            ),
            BEGIN - 1 + 600 * step,
        )
        for number, item in enumerate(ITEMS)
        if number % 3 == step % 3
    ]


async def turn(loop: Loop, steps: range) -> None:
    """Batches of any size, changes of the catalogue, and a read after each."""
    for step in steps:
        await loop.feed([*catalogue(loop, step), *ratings(loop, 10 + 17 * (step % 4), step=step)])
        await loop.read(f"u{step % 7}", BEGIN + 600 * (step + 1))


def put_strange(loop: Loop, name: str, **strange: Any) -> None:
    """Append a copy of a table's first row with other values, at the next offset."""
    table = ensure_table(loop.catalog, loop.spec.loop, name)
    (row,) = table.scan().to_arrow().slice(0, 1).to_pylist()
    end = checkpoints_of(table)[0]
    row |= {"event_id": f"strange-{end.offset}", "kafka_offset": end.offset, **strange}
    append(table, pa.Table.from_pylist([row], arrow_schema(name)), {0: end.at(end.offset + 1)})
    loop.offsets[SUFFIX_OF[name]] += 1
