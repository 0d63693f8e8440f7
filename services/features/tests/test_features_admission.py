"""Black boxes on the real Kafka and Redis: what time, types and corrections do to the store and the warehouse."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Layout
from gyre_core.features.state import unpack_fields
from gyre_core.spec import LoopSpec
from gyre_core.topics import dead_letter_topic, declared, topic
from gyre_features.online.store import OnlineStore
from gyre_features.settings import FeaturesSettings
from gyre_local.testing import eventually
from gyre_runtime.events import encode
from gyre_runtime.kafka import Producer, create_topics, read_records
from gyre_warehouse.tables import IMPRESSIONS, INTERACTIONS, ITEMS, ensure_table, open_catalog
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter

Start = Callable[..., "subprocess.Popen[bytes]"]
BEGIN, DAY_S = 1_365_000_000.0, 86_400.0
PATIENCE_S = 90.0


class Loop:
    """The test's loop, as a producer and a reader see it."""

    def __init__(self, spec: LoopSpec, layout: Layout, kafka: str, store: OnlineStore, warehouse: Path) -> None:
        self.spec, self.layout, self.kafka, self.store, self.warehouse = spec, layout, kafka, store, warehouse

    async def send(self, suffix: str, *sent: tuple[Any, float | str], key: str = "u0", **headers: str) -> None:
        """Events with their time, unix seconds or as its header says it; all in one partition, in this order.

        `headers` stand in place of those that they would have.
        """
        async with Producer(self.kafka, source="shop") as producer:
            for message, time in sent:
                record = encode(message, source="shop", time=time if isinstance(time, float) else BEGIN, key=key)
                others = headers | ({"ce_time": time} if isinstance(time, str) else {})
                made = [(name, others[name].encode() if name in others else each) for name, each in record.headers]
                await producer.send_record(topic(self.spec.loop, suffix), record._replace(headers=made))

    async def refused(self, suffix: str, *, what: str = "gyre_reason") -> list[str]:
        """The reasons of the topic's dead letters, or what another of their headers says."""
        name = dead_letter_topic(topic(self.spec.loop, suffix))
        found = [dict(each.headers) async for each in read_records(self.kafka, name)]
        return sorted(each[what].decode() for each in found)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """The rows of a table."""
        catalog = open_catalog(FeaturesSettings(warehouse=str(self.warehouse)))
        found: list[dict[str, Any]] = ensure_table(catalog, self.spec.loop, table).scan().to_arrow().to_pylist()
        return found

    async def history(self, user: str = "u0") -> int:
        """How many of a user's interactions the online store remembers."""
        return len(list(self.layout.history((await self.store.read(user, [])).user)))


@pytest.fixture
async def loop(spec: LoopSpec, layout: Layout, kafka: str, redis: Redis, tmp_path: Path) -> Loop:
    """The loop, with its topics."""
    await create_topics(kafka, declared(spec))
    return Loop(spec, layout, kafka, OnlineStore(redis, spec, layout), tmp_path / "warehouse")


def rating(item: str = "i1") -> behavior.Interaction:
    """A rating of `u0`."""
    return behavior.Interaction(user_id="u0", item_id=item, type="rating", value=7)


def priced(price: float) -> behavior.ItemChanged:
    """An item with a price."""
    return behavior.ItemChanged(item_id="i1", fields={"price": behavior.FieldValue(number=price)})


async def test_a_leap_freezes_nothing(loop: Loop, start_process: Start) -> None:
    """In a replay of 2013 one event of 2020 is dead-lettered, and those after it count online and in the table."""
    start_process("stream")
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")
    leap = BEGIN + 7 * 365 * DAY_S
    await loop.send("behavior.interactions", (rating("i1"), BEGIN), (rating("i2"), leap), (rating("i3"), BEGIN + 60))

    async def counted() -> bool:
        reasons, rows = await loop.refused("behavior.interactions"), loop.rows(INTERACTIONS)
        found = await loop.history(), len(rows), reasons
        assert found == (2, 2, ["IN_THE_FUTURE"])
        return True

    await eventually(counted, timeout_s=PATIENCE_S, message="the leap alone is refused")


async def test_a_time_that_nobody_can_store_stops_no_archive(loop: Loop, start_process: Start) -> None:
    """MinValue with an offset is a dead letter; what comes after it is in the table."""
    start_process("stream")
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")
    odd = "0001-01-01T00:00:00+01:00"
    await loop.send("catalog.items", (priced(1), odd), (priced(2), BEGIN), key="i1")

    async def archived() -> bool:
        found = len(loop.rows(ITEMS)), await loop.refused("catalog.items")
        assert found == (1, ["BAD_TIME"])
        return True

    await eventually(archived, timeout_s=PATIENCE_S, message="the event after the odd time is archived")


async def test_types_are_those_that_the_topic_declares(loop: Loop, start_process: Start) -> None:
    """An interaction in the catalogue and an item among interactions reach neither the store nor a table."""
    start_process("stream")
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")
    await loop.send("catalog.items", (rating(), BEGIN), (priced(2), BEGIN), key="i1")
    await loop.send("behavior.interactions", (priced(3), BEGIN), (rating(), BEGIN))

    async def sorted_out() -> bool:
        refused = await loop.refused("catalog.items"), await loop.refused("behavior.interactions")
        assert refused == (["UNKNOWN_TYPE"], ["UNKNOWN_TYPE"])
        assert (len(loop.rows(ITEMS)), len(loop.rows(INTERACTIONS)), await loop.history()) == (1, 1, 1)
        return True

    await eventually(sorted_out, timeout_s=PATIENCE_S, message="each topic holds its own type alone")


async def test_ids_sources_and_versions_are_judged_from_their_headers(loop: Loop, start_process: Start) -> None:
    """Too long an id or source, another version and a time that is too old are dead letters that say so; 256 fit."""
    start_process("stream")
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")
    for number, headers in enumerate(
        (
            {"ce_id": "e" * 256, "ce_source": "s" * 256},
            {"ce_id": "e" * 257},
            {"ce_id": "e" * 100_000},
            {"ce_source": "s" * 100_000},
            {"ce_specversion": "0.3"},
            {"ce_time": "2013-04-01T12:00:00Z"},
        )
    ):
        await loop.send("behavior.interactions", (rating(f"i{number}"), BEGIN), **headers)

    async def judged() -> bool:
        said, rows = await loop.refused("behavior.interactions", what="gyre_error"), loop.rows(INTERACTIONS)
        rule = "must have at most 256 characters, one of them not blank and none a control character"
        way = f"`gyre clock {loop.spec.loop} --to 1364817600 --back` where the clock is wrong"
        assert said == [
            f"ce_id of 100,000 characters: {rule}",
            f"ce_id of 257 characters: {rule}",
            f"ce_source of 100,000 characters: {rule}",
            "ce_specversion = '0.3': must be 1.0",
            f"ce_time = 2013-04-01T12:00:00.000000Z, 182400 s late: at most 1d is allowed; {way}",
        ]
        taken = [(each["item_id"], len(each["event_id"]), len(each["source"])) for each in rows]
        assert (taken, await loop.history()) == ([("i0", 256, 256)], 1)
        return True

    await eventually(judged, timeout_s=PATIENCE_S, message="stream and archive refuse the same five")


async def test_an_item_is_shown_once_in_an_impression(loop: Loop, start_process: Start) -> None:
    """An impression that names an item twice is refused, as `Rank` refuses it; the archive has the other one alone."""
    start_process("stream")
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")

    def shown(request: str, *items: str) -> tuple[behavior.Impression, float]:
        made = behavior.Impression(request_id=request, user_id="u0", item_ids=items, shown=len(items), method=1)
        return made, BEGIN

    await loop.send("behavior.impressions", shown("twice", "i1", "i2", "i1"), shown("once", "i1", "i2"))

    async def alone() -> bool:
        said = await loop.refused("behavior.impressions", what="gyre_error")
        assert (said, [each["request_id"] for each in loop.rows(IMPRESSIONS)]) == (
            ["item_ids[2] = 'i1': is given twice"],
            ["once"],
        )
        return True

    await eventually(alone, timeout_s=PATIENCE_S, message="stream and archive refuse the same one")


async def test_what_the_stream_takes_the_archive_can_write(loop: Loop, start_process: Start) -> None:
    """Numbers beyond the table's columns are refused by both; a newer gateway's method is in the table as it is."""
    start_process("stream")
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")

    def shown(request: str, **more: Any) -> tuple[behavior.Impression, float]:
        given = {"request_id": request, "user_id": "u0", "item_ids": ["i1"], "shown": 1, "method": 1}
        return behavior.Impression(**given | more), BEGIN

    bad = [{"epoch": 2**63}, {"shown": 2**32 - 1}, {"positions": [2**32 - 1]}, {"method": 0}]
    events = [shown(f"bad{number}", **more) for number, more in enumerate(bad)]
    await loop.send("behavior.impressions", *events, shown("new", method=99), shown("good"))

    async def alike() -> bool:
        assert await loop.refused("behavior.impressions") == ["INVALID_FIELD"] * 4
        assert sorted((each["request_id"], each["method"]) for each in loop.rows(IMPRESSIONS)) == [
            ("good", "rank"),
            ("new", "99"),
        ]
        return True

    await eventually(alike, timeout_s=PATIENCE_S, message="both took the same impressions")


async def test_a_correction_of_the_same_time_is_taken(loop: Loop, start_process: Start) -> None:
    """Of two changes of an item at one time the later in the log stands, whether it is greater or not."""

    def of(genre: str) -> behavior.ItemChanged:
        value = behavior.FieldValue(categories=behavior.Categories(values=[genre]))
        return behavior.ItemChanged(item_id="i1", fields={"genres": value})

    start_process("stream")
    await loop.send("catalog.items", (of("action"), BEGIN), (of("drama"), BEGIN), key="i1")
    await loop.send("catalog.items", (of("comedy"), BEGIN - 60), key="i1")
    await loop.send("behavior.interactions", (rating("i1"), BEGIN + 1))

    async def corrected() -> bool:
        assert await loop.history() == 1
        slots, (value,) = loop.layout.slots("item"), (await loop.store.read("u0", ["i1"])).items
        _, numbers = unpack_fields(slots, value)
        first, end = slots.field_spans["genres"]
        assert numbers[first:end] == (0, 1, 0)
        return True

    await eventually(corrected, timeout_s=PATIENCE_S, message="the item is of the corrected genre")


@pytest.fixture
def now_file(loop_file: Path) -> Path:
    """The loop's gyre.yaml, on the wall clock, where an event may be 2 s late."""
    text = loop_file.read_text().replace("clock: replay", "clock: wall")
    loop_file.write_text(text.replace("events:\n", "events:\n  max_lateness: 2s\n", 1))
    return loop_file


@pytest.mark.usefixtures("now_file")
async def test_what_was_timely_when_it_came_counts_whenever_it_is_read(loop: Loop, start_process: Start) -> None:
    """On the wall clock, clicks that came in time are taken by a stream and an archive that start after the bound."""
    await loop.send("behavior.interactions", (rating("i1"), time.time()), (rating("i2"), time.time()))
    sent = time.time()
    await eventually(lambda: time.time() - sent > 4, timeout_s=PATIENCE_S, message="the lateness bound is over")
    start_process("stream")
    start_process("archive", GYRE_FEATURES_ARCHIVE_S="0.2")

    async def counted() -> bool:
        assert await loop.refused("behavior.interactions") == []
        assert (len(loop.rows(INTERACTIONS)), await loop.history()) == (2, 2)
        return True

    await eventually(counted, timeout_s=PATIENCE_S, message="the timely clicks count")
