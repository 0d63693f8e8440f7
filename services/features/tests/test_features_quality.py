"""The quality worker: exact counts and ranges of the raw stream, told once the window is over, whatever dies."""

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as pb
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared, topic
from gyre_features.processes.stream import TYPES
from gyre_features.quality.report import QualityWindows
from gyre_features.quality.tallies import LoopChecks, ShownRequests, Tallies
from gyre_features.quality.watch import QualityWatch
from gyre_features.quality.windows import OTHER_TYPES, PartitionWindows
from gyre_local.process import Process
from gyre_local.records import corrupt, send_undecodable
from gyre_local.testing import eventually
from gyre_runtime.events import Event, Record, encode, message_types
from gyre_runtime.kafka import Producer, create_topics
from gyre_runtime.kafka.view import read_log, read_records

Start = Callable[..., "subprocess.Popen[bytes]"]
BEGIN = 1_370_000_040.0
"""The start of a minute; the test loop's windows are of a minute."""
LATENESS_S = 86_400
"""Of the test loop: on the replay clock as much as an event may be ahead."""


def _rating(value: float | None, *, kind: str = "rating") -> behavior.Interaction:
    return behavior.Interaction(user_id="u", item_id="i", type=kind, value=value)


def _event(spec: LoopSpec, message: Any, *, time: float, suffix: str = "behavior.interactions") -> Event:
    return Event("e", "test", "", time, message, None, topic(spec.loop, suffix), 0, 0)


def _windows(spec: LoopSpec, suffix: str = "behavior.interactions", *, closed_until: float = 0.0) -> PartitionWindows:
    return PartitionWindows(spec, topic(spec.loop, suffix), 0, tallies=_tallies(spec), closed_until=closed_until)


def _tallies(spec: LoopSpec) -> Callable[[], Tallies]:
    checks, shown = LoopChecks(spec), ShownRequests()
    return lambda: Tallies(checks, shown)


def _count(windows: PartitionWindows, offset: int, event: Event | None) -> str | None:
    """Count a record as the watch does in a replay, whose time is that of the events."""
    if event is not None:
        windows.observe(event.time)
    return windows.count(offset, event)


def _publish(windows: PartitionWindows, *, idle: bool = False) -> list[pb.QualityWindow]:
    published = []
    for window, message in list(windows.due(idle=idle)):
        windows.published(window, final=message.final)
        published.append(message)
    return published


def test_a_window_counts_types_and_ranges(spec: LoopSpec) -> None:
    """Events, types, and count, missing, least, greatest and sum of the values are exact."""
    windows = _windows(spec)
    for offset, value in enumerate([3.0, 9.0, None, 6.0, float("nan")]):
        _count(windows, offset, _event(spec, _rating(value), time=BEGIN + offset))
    _count(windows, 5, _event(spec, _rating(None, kind="click"), time=BEGIN + 5))
    _count(windows, 6, None)
    (published,) = _publish(windows, idle=True)
    assert (published.events, published.unreadable, dict(published.types)) == (6, 1, {"rating": 5, "click": 1})
    (found,) = published.ranges
    assert (found.field, found.count, found.missing) == ("value", 3, 2)
    assert (found.min, found.max, found.sum) == (3.0, 9.0, 18.0)


def test_number_fields_of_items_have_ranges(spec: LoopSpec) -> None:
    """A number field that an item lacks, or gives as text, is missing; fields of other kinds have no range."""
    windows = _windows(spec, "catalog.items")
    genres = behavior.FieldValue(categories=behavior.Categories(values=["drama"]))
    for offset, fields in enumerate(
        [
            {"price": behavior.FieldValue(number=4.5), "genres": genres},
            {"genres": genres},
            {"price": behavior.FieldValue(text="4")},
        ]
    ):
        message = behavior.ItemChanged(item_id=f"i{offset}", fields=fields)
        _count(windows, offset, _event(spec, message, time=BEGIN, suffix="catalog.items"))
    (published,) = _publish(windows, idle=True)
    assert [(each.field, each.count, each.missing, each.sum) for each in published.ranges] == [("price", 1, 2, 4.5)]


def test_a_window_is_told_after_its_end_and_finally_after_the_lateness(spec: LoopSpec) -> None:
    """The loop's clock decides: so far at the end, finally after max_lateness, and in between only with changes."""
    windows = _windows(spec)
    _count(windows, 0, _event(spec, _rating(1.0), time=BEGIN))
    assert _publish(windows) == []
    _count(windows, 1, _event(spec, _rating(1.0), time=BEGIN + 60))
    (so_far,) = _publish(windows)
    assert (so_far.window_start_time.ToSeconds(), so_far.events, so_far.final) == (BEGIN, 1, False)
    assert _publish(windows) == []
    _count(windows, 2, _event(spec, _rating(1.0), time=BEGIN + 59))
    (late,) = _publish(windows)
    assert (late.events, late.final) == (2, False)
    _count(windows, 3, _event(spec, _rating(1.0), time=BEGIN + 60 + LATENESS_S))
    final = [each for each in _publish(windows) if each.final]
    assert [(each.window_start_time.ToSeconds(), each.events) for each in final] == [(BEGIN, 2)]
    assert _count(windows, 4, _event(spec, _rating(1.0), time=BEGIN + 59)) == "WINDOW_CLOSED"


def test_late_events_are_gathered_before_a_window_is_told_again(
    spec: LoopSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes late is told again after a while, all at once; the final telling waits for nothing."""
    moment = 100.0
    monkeypatch.setattr("gyre_features.quality.windows.monotonic", lambda: moment)
    source = topic(spec.loop, "behavior.interactions")
    windows = PartitionWindows(spec, source, 0, tallies=_tallies(spec), closed_until=0.0, again_s=1.0)
    _count(windows, 0, _event(spec, _rating(1.0), time=BEGIN))
    _count(windows, 1, _event(spec, _rating(1.0), time=BEGIN + 60))
    assert [each.events for each in _publish(windows)] == [1]
    _count(windows, 2, _event(spec, _rating(1.0), time=BEGIN + 58))
    _count(windows, 3, _event(spec, _rating(1.0), time=BEGIN + 59))
    assert _publish(windows) == []
    moment = 101.0
    assert [each.events for each in _publish(windows)] == [3]
    _count(windows, 4, _event(spec, _rating(1.0), time=BEGIN + 57))
    _count(windows, 5, _event(spec, _rating(1.0), time=BEGIN + 60 + LATENESS_S))
    assert [each.events for each in _publish(windows) if each.final] == [4]


def test_a_successor_begins_at_the_oldest_open_window(spec: LoopSpec) -> None:
    """The offset to resume at is the first that feeds a window which is not final."""
    windows = _windows(spec)
    _count(windows, 10, _event(spec, _rating(1.0), time=BEGIN))
    _count(windows, 11, _event(spec, _rating(1.0), time=BEGIN + 70))
    _count(windows, 12, _event(spec, _rating(1.0), time=BEGIN + 10))
    assert windows.resume_offset == 10
    _count(windows, 13, _event(spec, _rating(1.0), time=BEGIN + 65 + LATENESS_S))
    _publish(windows)
    assert windows.resume_offset == 11


def test_a_window_that_was_told_finally_is_not_told_again(spec: LoopSpec) -> None:
    """A successor that reads records of a final window once more leaves them out."""
    windows = _windows(spec, closed_until=BEGIN + 60)
    assert _count(windows, 0, _event(spec, _rating(1.0), time=BEGIN + 59)) == "WINDOW_CLOSED"
    assert _count(windows, 1, _event(spec, _rating(1.0), time=BEGIN + 60)) is None
    assert _count(windows, 1, _event(spec, _rating(1.0), time=BEGIN + 60)) == "COUNTED"
    assert [each.events for each in _publish(windows, idle=True)] == [1]


def test_made_up_types_do_not_grow_without_bound(spec: LoopSpec) -> None:
    """Beyond the bound, types are counted together."""
    windows = _windows(spec)
    for offset in range(200):
        _count(windows, offset, _event(spec, _rating(None, kind=f"t{offset}"), time=BEGIN))
    (published,) = _publish(windows, idle=True)
    assert len(published.types) == 65
    assert published.types[OTHER_TYPES] == 136


def test_a_report_adds_partitions_up_and_replaces_what_is_told_again() -> None:
    """The newest message of each partition counts, the window is final when all are, and old windows go."""
    windows = QualityWindows(kept=2)

    def note(start: int, partition: int, events: int, *, final: bool = False) -> None:
        message = pb.QualityWindow(loop="l", topic="l.t", partition=partition, events=events, final=final)
        message.window_start_time.FromSeconds(start)
        message.types["click"] = events
        message.ranges.add(field="value", count=1, min=events, max=events, sum=events)
        windows.note(message)

    note(60, 0, 3)
    note(60, 0, 5, final=True)
    note(60, 1, 7)
    (whole,) = windows.newest("l", 10)
    assert (whole.events, whole.types["click"], whole.final) == (12, 12, False)
    assert (whole.ranges[0].min, whole.ranges[0].max, whole.ranges[0].sum) == (5, 7, 12)
    note(120, 0, 1)
    note(180, 0, 1, final=True)
    assert [each.window_start_time.ToSeconds() for each in windows.newest("l", 10)] == [180, 120]
    assert [each.window_start_time.ToSeconds() for each in windows.newest("l", 1)] == [180]
    assert windows.newest("other", 10) == []


async def test_offsets_move_only_after_the_window_was_told(spec: LoopSpec) -> None:
    """A crash between telling and committing repeats a window, and never loses one."""
    log: list[Any] = []

    async def closed_until(places: Any) -> dict[Any, float]:
        return {}

    async def publish(windows: Sequence[pb.QualityWindow]) -> None:
        log.extend(("told", each.window_start_time.ToSeconds(), each.final) for each in windows)

    async def commit(offsets: Any) -> None:
        log.append(("committed", *(each.offset for each in offsets.values())))

    watch = QualityWatch({spec.loop: spec}, TYPES, closed_until=closed_until, publish=publish, commit=commit, idle_s=60)
    name = topic(spec.loop, "behavior.interactions")
    for offset, at in enumerate([BEGIN, BEGIN + 30, BEGIN + 80_000, BEGIN + 60 + LATENESS_S]):
        record = encode(_rating(1.0), source="test", time=at)
        await watch.observe([_Received(name, 0, offset, *record)])
    so_far, later = ("told", BEGIN, False), ("told", BEGIN + 79_980, False)
    assert log == [so_far, ("told", BEGIN, True), later, ("committed", 2)]


async def test_a_deletion_is_passed_over(spec: LoopSpec) -> None:
    """A record without a value deletes its key from a compacted topic: it is neither an event nor unreadable."""
    published: list[pb.QualityWindow] = []
    committed: list[Any] = []

    async def publish(windows: Any) -> None:
        published.extend(windows)

    async def closed_until(_: Any) -> dict[Any, float]:
        return {}

    async def commit(offsets: Any) -> None:
        committed.append({place: each.offset for place, each in offsets.items()})

    watch = QualityWatch({spec.loop: spec}, TYPES, closed_until=closed_until, publish=publish, commit=commit, idle_s=0)
    name = topic(spec.loop, "catalog.items")
    record = encode(behavior.ItemChanged(item_id="i"), source="test", time=BEGIN)
    await watch.observe([_Received(name, 0, 0, *record)])
    await watch.observe([_Received(name, 1, 7, b"i", None, [])])
    assert [(each.events, each.unreadable) for each in published] == [(1, 0)]
    assert committed[-1] == {(name, 1): 8}


async def test_one_producers_clock_decides_for_nobody(spec: LoopSpec) -> None:
    """An event almost `max_future` ahead neither puts the present window to rest, nor makes data fresher than now."""
    published: list[pb.QualityWindow] = []

    async def publish(windows: Any) -> None:
        published.extend(windows)

    async def closed_until(_: Any) -> dict[Any, float]:
        return {}

    async def commit(_: Any) -> None:
        """Nothing is read again here."""

    wall = spec.model_copy(update={"clock": "wall"})
    watch = QualityWatch({spec.loop: wall}, TYPES, closed_until=closed_until, publish=publish, commit=commit, idle_s=0)
    name, now = topic(spec.loop, "behavior.interactions"), time.time()
    events = [("fast", now + 299), *(("same", now) for _ in range(4))]
    records = [encode(_rating(1.0), source="test", id=id_, time=at) for id_, at in events]
    await watch.observe([_Received(name, 0, offset, *record) for offset, record in enumerate(records)])
    repeated = {
        (tally.seen, tally.at_fault) for each in published for tally in each.tallies if "duplicates" in tally.name
    }
    assert (4, 3) in repeated
    newest = max(each.newest_event_time.ToNanoseconds() / 1e9 for each in published)
    assert newest <= time.time()


class _Received:
    """A record as a consumer hands it over."""

    def __init__(self, topic: str, partition: int, offset: int, key: Any, value: bytes | None, headers: Any) -> None:
        self.topic, self.partition, self.offset = topic, partition, offset
        self.key, self.value, self.headers = key, value, headers
        self.timestamp, self.timestamp_type = round(time.time() * 1000), 0


async def _produce(kafka: str, spec: LoopSpec, first: int, end: int, *, step_s: float = 1.0) -> None:
    name = topic(spec.loop, "behavior.interactions")
    async with Producer(kafka, source="test") as producer:
        for each in range(first, end):
            message = behavior.Interaction(user_id=f"u{each}", item_id="i", type="rating", value=each % 10)
            producer.enqueue(name, message, key=f"u{each}", time=BEGIN + each * step_s)


async def _published(kafka: str, spec: LoopSpec) -> list[pb.QualityWindow]:
    types = message_types(pb.QualityWindow)
    return [event.message async for event in read_log(kafka, topic(spec.loop, "features.quality"), types)]


def _latest(published: Sequence[pb.QualityWindow]) -> dict[tuple[str, int, float], pb.QualityWindow]:
    return {(each.topic, each.partition, each.window_start_time.ToSeconds()): each for each in published}


def _close_windows_after_an_hour(loop_file: Path) -> None:
    text = loop_file.read_text()
    loop_file.write_text(text.replace("events:\n", "events:\n  max_future: 1h\n", 1))


@pytest.mark.adapter
async def test_the_worker_survives_kills_and_rebalances(
    kafka: str, spec: LoopSpec, loop_file: Path, start_process: Start
) -> None:
    """SIGKILL in the middle, and two that take over: the latest windows hold each event once; final ones stay."""
    _close_windows_after_an_hour(loop_file)
    await create_topics(kafka, declared(spec))
    env = {"GYRE_FEATURES_QUALITY_IDLE_S": "1", "GYRE_FEATURES_QUALITY_BATCH": "100"}
    await _produce(kafka, spec, 0, 3000, step_s=3.0)
    name = topic(spec.loop, "behavior.interactions")
    async with Producer(kafka, source="test") as producer:
        await producer.send_record(name, Record(b"k", b"\xff", [("ce_id", b"1")]))
    victim = start_process("quality", **env)

    async def began() -> bool:
        return any(each.final for each in await _published(kafka, spec))

    await eventually(began, timeout_s=40, message="windows were told")
    victim.kill()
    victim.wait()
    await _produce(kafka, spec, 3000, 3500, step_s=3.0)
    successor = start_process("quality", **env)

    async def going_on() -> bool:
        return sum(each.events for each in _latest(await _published(kafka, spec)).values()) >= 3100

    await eventually(going_on, timeout_s=60, message="the successor goes on")
    companion = start_process("quality", **env)
    await eventually(lambda: _says(companion, "OneForOneSupervisor"), timeout_s=60, message="a companion joins")
    await _produce(kafka, spec, 3500, 4000, step_s=3.0)

    async def whole() -> bool:
        return sum(each.events for each in _latest(await _published(kafka, spec)).values()) >= 4000

    await eventually(whole, timeout_s=60, message="every event is in a window")
    published = await _published(kafka, spec)
    latest = _latest(published)
    assert sum(each.events for each in latest.values()) == 4000
    assert sum(each.unreadable for each in latest.values()) == 1
    assert sum(each.ranges[0].sum for each in latest.values()) == sum(each % 10 for each in range(4000))
    for each in published:
        if each.final:
            assert each.events == latest[each.topic, each.partition, each.window_start_time.ToSeconds()].events
    for each in (successor, companion):
        each.send_signal(signal.SIGTERM)
    assert [each.wait(20) for each in (successor, companion)] == [0, 0]


@pytest.mark.adapter
async def test_a_record_that_cannot_be_decoded_is_counted_and_passed(
    kafka: str, kafka_process: Process, spec: LoopSpec, loop_file: Path, start_process: Start
) -> None:
    """A header's name that is no UTF-8 text and a wrong checksum make unreadable records; those behind are counted."""
    _set_wall_clock(loop_file)
    await create_topics(kafka, declared(spec))
    name, begin, marker = topic(spec.loop, "behavior.interactions"), time.time() - 600, b"the-record-that-is-spoilt"
    spoilt = behavior.Interaction(user_id="u", item_id=marker.decode(), type="rating", value=1.0)
    async with Producer(kafka, source="test") as producer:
        for number in range(21):
            message = spoilt if number == 14 else _rating(1.0)
            await producer.send(name, message, key="u", id=f"e{number}", time=begin + number)
            if number == 9:
                place = await _partition_of(kafka, name)
                await send_undecodable(kafka, name, partition=place)
    corrupt(kafka_process.recipe.directory, name, marker, partition=place)
    worker = start_process("quality", GYRE_FEATURES_QUALITY_IDLE_S="1")

    async def counted() -> bool:
        latest = _latest(await _published(kafka, spec)).values()
        return (sum(each.events for each in latest), sum(each.unreadable for each in latest)) == (20, 2)

    await eventually(counted, timeout_s=60, message="all that stands beside the records is counted")
    assert worker.poll() is None


def _set_wall_clock(loop_file: Path) -> None:
    loop_file.write_text(loop_file.read_text().replace("clock: replay", "clock: wall"))


async def _partition_of(kafka: str, name: str) -> int:
    """The partition that all records of a topic are in."""
    (place,) = {record.partition async for record in read_records(kafka, name)}
    return place


@pytest.mark.adapter
@pytest.mark.usefixtures("kafka")
async def test_the_worker_waits_for_kafka(
    kafka: str, kafka_process: Process, spec: LoopSpec, start_process: Start
) -> None:
    """A worker that starts while Kafka is away counts once it is there, and ends at once when told so before."""
    await create_topics(kafka, declared(spec))
    await _produce(kafka, spec, 0, 50)
    kafka_process.stop()
    try:
        impatient = start_process("quality")
        patient = start_process("quality", GYRE_FEATURES_QUALITY_IDLE_S="1")
        await eventually(lambda: _says(patient, "waiting for Kafka"), timeout_s=60)
        await eventually(lambda: _says(impatient, "waiting for Kafka"), timeout_s=60)
        impatient.send_signal(signal.SIGTERM)
        assert impatient.wait(20) == 0
    finally:
        kafka_process.start()

    async def whole() -> bool:
        return sum(each.events for each in _latest(await _published(kafka, spec)).values()) == 50

    await eventually(whole, timeout_s=60, message="the worker counted what it found")


def _says(process: Any, words: str) -> bool:
    return words in process.log.read_text()
