"""The import of history on the real Kafka: fast, idempotent, and refused as a whole where it breaks a rule."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_client import ClientSettings, Imported, Invalid, Unavailable, import_history
from gyre_client.history import HistoryImport, imported_ids, prepare
from gyre_core.features import Event, FieldsChanged, Impression, UserInteraction
from gyre_core.spec import LoopSpec
from gyre_core.topics import IMPORT_SOURCE, declared, topic
from gyre_runtime.events import Record, decode, message_types
from gyre_runtime.kafka import Producer, create_topics, ensure_topics, read_records

TYPES = message_types(behavior.Interaction, behavior.Impression, behavior.ItemChanged)


def some_history(count: int) -> list[Event]:
    """An item, and so many interactions, each with an impression before it."""
    events: list[Event] = [FieldsChanged("item", "i0", 100.0, {"price": 3.0, "tags": ["old"]})]
    for number in range(count):
        user = f"u{number % 7}"
        events.append(Impression(user, ("i0", "i1"), 200.0 + number))
        events.append(UserInteraction(user, "i0", "rating", 200.0 + number, 5.0))
    return events


async def read(settings: ClientSettings, loop: str) -> Sequence[object]:
    """Everything in the loop's topics."""
    names = ("catalog.items", "behavior.interactions", "behavior.impressions")
    return [decode(each, TYPES) for name in names async for each in read_records(settings.kafka, topic(loop, name))]


@pytest.mark.adapter
async def test_a_second_import_adds_nothing(kafka: str, spec: LoopSpec) -> None:
    """The same history imported again, and again with more behind it, leaves each event in Kafka once."""
    settings = ClientSettings(kafka=kafka)
    assert await import_history(settings, spec, some_history(50)) == Imported(sent=101, known=0)
    before = await read(settings, spec.loop)
    assert await import_history(settings, spec, some_history(50)) == Imported(sent=0, known=101)
    assert await import_history(settings, spec, some_history(60)) == Imported(sent=20, known=101)
    after = await read(settings, spec.loop)
    assert (len(before), len(after)) == (101, 121)
    assert len({(event.source, event.id) for event in after}) == 121  # type: ignore[attr-defined]


@pytest.mark.adapter
async def test_a_cancelled_send_is_made_up_for_by_the_next(kafka: str, spec: LoopSpec) -> None:
    """A send that ends before all of it is sent leaves no event out of the next one of the same import."""
    history = some_history(700)
    async with HistoryImport(ClientSettings(kafka=kafka), spec) as open_import:
        sending = asyncio.create_task(open_import.send(history))
        await asyncio.sleep(0)  # it has enqueued a part, and waits for Kafka
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        done = await open_import.send(history)
    assert done.sent > 0
    assert len(await read(ClientSettings(kafka=kafka), spec.loop)) == done.sent + done.known == 1401


@pytest.mark.adapter
async def test_what_kafka_refused_is_not_known_to_the_next_send(kafka: str, spec: LoopSpec) -> None:
    """An event that its topic does not take is refused by a second send, too; known is only what Kafka holds."""
    (impressions,) = [each for each in declared(spec) if each.name == topic(spec.loop, "behavior.impressions")]
    await create_topics(kafka, [replace(impressions, max_bytes=1000)])
    shown = tuple(blake2b(bytes([number])).hexdigest() for number in range(100))
    large, click = Impression("u", shown, 200.0), UserInteraction("u", "i", "click", 200.0)
    async with HistoryImport(ClientSettings(kafka=kafka), spec) as open_import:
        for _ in range(2):
            with pytest.raises(Unavailable, match="gave up 1 events"):
                await open_import.send([large, click])
        assert await open_import.send([click]) == Imported(sent=0, known=1)


def prices(*given: float) -> list[Event]:
    """Changes of one item's price, all of one time."""
    return [FieldsChanged("item", "i0", 100.0, {"price": price}) for price in given]


async def imported_prices(kafka: str, loop: str) -> list[float]:
    """The item's prices in Kafka, in the order of its log."""
    records = [each async for each in read_records(kafka, topic(loop, "catalog.items"))]
    return [decode(each, TYPES).message.fields["price"].number for each in records]


@pytest.mark.adapter
async def test_a_correction_that_is_taken_back_is_sent(kafka: str, spec: LoopSpec) -> None:
    """Prices 10, 20 and 10 of one time, import after import or in one, leave 10; what the item has is known."""
    settings = ClientSettings(kafka=kafka)
    done = [await import_history(settings, spec, prices(price)) for price in (10.0, 20.0, 10.0, 10.0)]
    assert [each.sent for each in done] == [1, 1, 1, 0]
    assert await imported_prices(kafka, spec.loop) == [10.0, 20.0, 10.0]
    assert (await import_history(settings, spec, prices(10.0, 20.0, 10.0))).sent == 0
    await import_history(settings, spec, prices(30.0, 10.0, 30.0, 10.0))
    assert (await imported_prices(kafka, spec.loop))[-1] == 10.0


@pytest.mark.adapter
async def test_headers_without_a_value_end_no_import(kafka: str, spec: LoopSpec) -> None:
    """Records of other producers whose headers are null are no imported events; the import goes on."""
    settings, name = ClientSettings(kafka=kafka), topic(spec.loop, "behavior.interactions")
    await ensure_topics(settings, [spec])
    async with Producer(kafka, source="shop") as producer:
        for suffix in ("behavior.interactions", "catalog.items"):
            for missing in ("ce_id", "ce_source", "ce_time", "other"):
                record = Record(b"u", b"", [("ce_source", IMPORT_SOURCE.encode()), (missing, None)])  # type: ignore[list-item]
                await producer.send_record(topic(spec.loop, suffix), record)
    assert len([each async for each in read_records(kafka, name)]) == 4
    assert await import_history(settings, spec, some_history(1)) == Imported(sent=3, known=0)
    assert await import_history(settings, spec, some_history(1)) == Imported(sent=0, known=3)


@pytest.mark.adapter
async def test_imported_events_say_what_they_are(kafka: str, spec: LoopSpec) -> None:
    """Source, event time, key and payload are as the loop's consumers expect; impressions are marked as simulated."""
    settings = ClientSettings(kafka=kafka)
    await import_history(settings, spec, some_history(1))
    item, interaction, impression = await read(settings, spec.loop)
    assert {event.source for event in (item, interaction, impression)} == {IMPORT_SOURCE}  # type: ignore[attr-defined]
    assert (item.key, item.time, item.message.fields["price"].number) == ("i0", 100.0, 3.0)  # type: ignore[attr-defined]
    assert (interaction.key, interaction.time, interaction.message.value) == ("u0", 200.0, 5.0)  # type: ignore[attr-defined]
    shown = impression.message  # type: ignore[attr-defined]
    assert (shown.simulated, shown.shown, list(shown.item_ids)) == (True, 2, ["i0", "i1"])
    assert (shown.method, shown.model_version) == (behavior.IMPRESSION_METHOD_IMPORT, "")
    assert shown.request_id.startswith("import-")


@pytest.mark.adapter
async def test_a_history_that_breaks_a_rule_is_refused_before_anything_is_sent(kafka: str, spec: LoopSpec) -> None:
    """One rating out of range anywhere, and no event of the history is in Kafka."""
    settings = ClientSettings(kafka=kafka)
    events = [*some_history(3), UserInteraction("u", "i", "rating", 300.0, 11.0)]
    with pytest.raises(Invalid, match="must be 0 to 10"):
        await import_history(settings, spec, events)
    await ensure_topics(settings, [spec])
    assert await imported_ids(kafka, spec.loop) == set()


@pytest.mark.parametrize(
    "event",
    [
        UserInteraction("u", "i", "purchase", 1.0),
        FieldsChanged("item", "i", 1.0, {"colour": "red"}),
        FieldsChanged("user", "u", 1.0, {"colour": "red"}),
    ],
)
def test_what_the_loop_does_not_declare_is_refused(spec: LoopSpec, event: Event) -> None:
    """Unknown types, unknown fields and entities other than items are named in the error."""
    with pytest.raises(Invalid):
        prepare(spec, event)


def test_an_event_id_depends_on_all_of_the_event(spec: LoopSpec) -> None:
    """Same content, same id; any difference, another id."""
    variants = [
        UserInteraction("u", "i", "rating", 1.0, 5.0),
        UserInteraction("v", "i", "rating", 1.0, 5.0),
        UserInteraction("u", "j", "rating", 1.0, 5.0),
        UserInteraction("u", "i", "rating", 2.0, 5.0),
        UserInteraction("u", "i", "rating", 1.0, 6.0),
        UserInteraction("u", "i", "click", 1.0),
        Impression("u", ("i",), 1.0),
        Impression("u", ("i", "j"), 1.0),
    ]
    ids = [prepare(spec, event).id for event in variants]
    assert len(set(ids)) == len(variants)
    assert ids == [prepare(spec, event).id for event in variants]


@pytest.mark.adapter
async def test_progress_counts_every_event_once(kafka: str, spec: LoopSpec) -> None:
    """What is reported on the way sums to the history, in a first and in a second import."""
    settings = ClientSettings(kafka=kafka)
    for _ in range(2):
        seen: list[int] = []
        await import_history(settings, spec, some_history(700), on_progress=seen.append)
        assert sum(seen) == 1401


@pytest.mark.adapter
@pytest.mark.slow
async def test_the_import_is_fast(kafka: str, spec: LoopSpec) -> None:
    """An interaction costs less than 100 µs of processor time, and so 10,000 a second reach Kafka."""
    events = [UserInteraction(f"u{number % 999}", f"i{number}", "click", float(number)) for number in range(50_000)]
    started = time.process_time()
    await import_history(ClientSettings(kafka=kafka), spec, events)
    rate = len(events) / (time.process_time() - started)
    assert rate >= 10_000, f"{rate:.0f} events/s"
