"""Checks of single events on the live stream: what they count, what they say, and the worker that makes them."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as pb
from gyre.events.v1 import monitor_pb2 as monitor
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec, parse_loop
from gyre_core.topics import declared, topic
from gyre_features.processes.stream import TYPES
from gyre_features.quality.judging import follow_up, live_quality
from gyre_features.quality.report import QualityWindows
from gyre_features.quality.tallies import LoopChecks, ShownRequests, Tallies
from gyre_features.quality.watch import QualityWatch
from gyre_features.quality.windowed import Judged, judge_windows
from gyre_features.quality.windows import PartitionWindows
from gyre_local.testing import eventually
from gyre_privacy.detection import Finding, Scanner
from gyre_quality.report import Check
from gyre_quality.sampling import HashSample
from gyre_runtime.events import Event, ReceivedRecord, encode, message_types
from gyre_runtime.kafka import Producer, create_topics, read_compacted

Start = Callable[..., Any]
Sent = tuple[str, Any, float, str]
BEGIN = 1_370_000_040.0
"""The start of a minute, the length of the test loop's windows."""
QUALITY = """
quality:
  actions: {personal_data: block, bots: quarantine}
  live: {windows: 3, min_events: 10}
  checks:
    completeness: {columns: {items.price: 0.5, items.title: 0.0}}
    ranges: {columns: {items.price: {min: 0, max: 100}, price: {min: 0, max: 50}}}
    personal_data: {fields: [title, interactions.user_id, users.note]}
"""


@pytest.fixture
def checked(loop_file: Path) -> LoopSpec:
    """The test's loop with titles and a feature of the price, whose checks judge early."""
    text = loop_file.read_text()
    text = text.replace("    price: {kind: number}\n", "    price: {kind: number}\n    title: {kind: text}\n")
    text = text.replace("features:\n", "users:\n  fields:\n    note: {kind: text}\nfeatures:\n", 1)
    text = text.replace("features:\n", "features:\n  - {name: price, kind: field, scope: item, field: price}\n")
    loop_file.write_text(text + QUALITY)
    return parse_loop(loop_file.read_text())


class Counting:
    """One window of a partition's impressions, interactions and items, which share what was shown."""

    def __init__(self, spec: LoopSpec) -> None:
        self.spec, self._shown, self._checks = spec, ShownRequests(), LoopChecks(spec)
        self._of: dict[str, Tallies] = {}
        self._number = 0

    def add(self, suffix: str, message: Any, time: float, *, event_id: str = "") -> None:
        """Count an event."""
        self._number += 1
        of = self._of.setdefault(suffix, Tallies(self._checks, self._shown))
        name = topic(self.spec.loop, suffix)
        of.count(Event(event_id or str(self._number), "test", "", time, message, None, name, 0, self._number))

    def found(self, name: str, column: str = "") -> tuple[int, int]:
        """How many were seen and at fault."""
        published = [
            each for of in self._of.values() for each in of.published() if (each.name, each.column) == (name, column)
        ]
        return sum(each.seen for each in published), sum(each.at_fault for each in published)

    def window(self, suffix: str, start: float, *, partition: int = 0, unreadable: int = 0) -> pb.QualityWindow:
        """What the topic's window is told as."""
        of = self._of.get(suffix)
        tallies = of.published() if of is not None else []
        made = pb.QualityWindow(loop=self.spec.loop, topic=topic(self.spec.loop, suffix), tallies=tallies)
        made.partition, made.unreadable = partition, unreadable
        made.window_start_time.FromSeconds(int(start))
        return made


def _act(number: int = 0, *, item: str = "i0", request: str = "", user: str = "", **more: Any) -> behavior.Interaction:
    return behavior.Interaction(user_id=user or f"u{number}", item_id=item, type="rating", request_id=request, **more)


def _impression(spec: LoopSpec, request: str, items: list[str], *, prices: list[float]) -> behavior.Impression:
    layout = Layout.compile(spec)
    message = behavior.Impression(
        request_id=request, user_id="u", item_ids=items, shown=2, method=behavior.IMPRESSION_METHOD_RANK
    )
    matrix = np.zeros((len(items), len(layout.columns)), dtype="<f4")
    matrix[:, layout.columns.index("price")] = prices
    block = message.features
    block.layout, block.rows, block.columns, block.values = layout.hash, *matrix.shape, matrix.tobytes()
    return message


def test_repeated_ids_are_duplicates(checked: LoopSpec) -> None:
    """An id that came before from the same source is one too many, however often."""
    counting = Counting(checked)
    for number in range(20):
        counting.add("behavior.interactions", _act(number), BEGIN, event_id=f"e{number % 15}")
    assert counting.found("completeness.duplicates", "interactions.event_id") == (20, 5)


def test_missing_and_impossible_values(checked: LoopSpec) -> None:
    """Of values that the type declares: what is missing or no number lacks, what is outside is out of range."""
    counting = Counting(checked)
    for value in (5.0, 0.0, 10.0, 11.0, -1.0, float("nan")):
        counting.add("behavior.interactions", _act(value=value), BEGIN)
    counting.add("behavior.interactions", _act(), BEGIN)
    counting.add("behavior.interactions", behavior.Interaction(user_id="u", item_id="i", type="click"), BEGIN)
    assert counting.found("completeness.missing", "interactions.value.rating") == (7, 2)
    assert counting.found("completeness.range", "interactions.value.rating") == (5, 2)


def test_fields_of_items(checked: LoopSpec) -> None:
    """The fields that the checks name: missing, out of range, and with personal data."""
    counting = Counting(checked)
    fields: list[dict[str, Any]] = [
        {"price": behavior.FieldValue(number=5), "title": behavior.FieldValue(text="Up")},
        {"price": behavior.FieldValue(number=500), "title": behavior.FieldValue(text="ask anna@example.org")},
        {"title": behavior.FieldValue(text="")},
    ]
    for number, each in enumerate(fields):
        counting.add("catalog.items", behavior.ItemChanged(item_id=f"i{number}", fields=each), BEGIN)
    assert counting.found("completeness.missing", "items.price") == (3, 1)
    assert counting.found("completeness.missing", "items.title") == (3, 1)
    assert counting.found("completeness.range", "items.price") == (2, 1)
    assert counting.found("personal_data", "items.title") == (3, 1)


def test_personal_data_in_ids_and_users(checked: LoopSpec) -> None:
    """Ids and users' fields that the checks name are searched as items' are."""
    counting = Counting(checked)
    for user in ("u1", "anna@example.org"):
        counting.add("behavior.interactions", _act(user=user), BEGIN)
    for text in ("likes films", "bob@example.org", ""):
        fields = {"note": behavior.FieldValue(text=text)}
        counting.add("catalog.users", behavior.UserChanged(user_id="u", fields=fields), BEGIN)
    assert counting.found("personal_data", "interactions.user_id") == (2, 1)
    assert counting.found("personal_data", "users.note") == (3, 1)


async def test_texts_are_searched_off_the_event_loop(checked: LoopSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts of a batch are searched in a thread, so that the worker's heartbeats go on meanwhile."""
    searched_by: set[int] = set()
    scan = Scanner.scan

    def noted(self: Scanner, text: str) -> list[Finding]:
        searched_by.add(threading.get_ident())
        return scan(self, text)

    async def nothing(_: Any) -> dict[Any, float]:
        return {}

    monkeypatch.setattr(Scanner, "scan", noted)
    watch = QualityWatch(
        {checked.loop: checked},
        TYPES,
        closed_until=nothing,
        publish=nothing,  # type: ignore[arg-type]
        commit=nothing,  # type: ignore[arg-type]
        idle_s=60,
    )
    record = encode(_act(user="jane.doe@example.com"), source="test", time=BEGIN)
    received = SimpleNamespace(
        topic=topic(checked.loop, "behavior.interactions"), partition=0, offset=0, key=record[0], value=record[1],
        headers=record[2], timestamp=round(BEGIN * 1000), timestamp_type=0,
    )  # fmt: skip
    await watch.observe([cast("ReceivedRecord", received)])
    assert searched_by
    assert threading.get_ident() not in searched_by


def test_features_that_were_served(checked: LoopSpec) -> None:
    """A feature column that the checks name is held against its range; missing values are none; layouts must agree."""
    counting = Counting(checked)
    message = _impression(checked, "r", ["a", "b", "c"], prices=[5, 70, float("nan")])
    counting.add("behavior.impressions", message, BEGIN)
    message.features.layout = "another"
    counting.add("behavior.impressions", message, BEGIN)
    assert counting.found("completeness.range", "price") == (2, 1)


def test_impossible_sequences_wait_for_their_impression(checked: LoopSpec) -> None:
    """Interactions that come first are judged once their user's impression is there, those of others never."""
    counting = Counting(checked)
    for request, item, time in (
        ("r", "a", 0.0),
        ("r", "b", -0.5),
        ("r", "b", -5.0),
        ("r", "rest", 1.0),
        ("r", "z", 1.0),
    ):
        counting.add("behavior.interactions", _act(item=item, request=request, user="u"), BEGIN + time)
    for request, user in (("unknown", "u"), ("r", "another"), ("", "u")):
        counting.add("behavior.interactions", _act(item="a", request=request, user=user), BEGIN)
    assert counting.found("sequence.never_shown") == (0, 0)
    shown = _impression(checked, "r", ["a", "b", "rest"], prices=[1, 1, 1])
    counting.add("behavior.impressions", shown, BEGIN)
    assert counting.found("sequence.before_impression") == (5, 1)
    assert counting.found("sequence.never_shown") == (5, 2)
    assert counting.found("sequence.never_shown") == (5, 2)


def test_users_that_are_too_fast_or_too_regular(checked: LoopSpec) -> None:
    """People pass; a burst of hundreds and a timer do not; all events of such users are at fault."""
    counting, draw = Counting(checked), np.random.default_rng(7)
    for number in range(60):
        for time in draw.uniform(0, 60, size=3):
            counting.add("behavior.interactions", _act(number), BEGIN + time)
    for time in draw.uniform(0, 60, size=400):
        counting.add("behavior.interactions", _act(user="fast"), BEGIN + time)
    for step in range(30):
        counting.add("behavior.interactions", _act(user="timer"), BEGIN + 2 * step)
    assert counting.found("bots") == (60 * 3 + 400 + 30, 430)


def test_windows_that_ended_a_while_ago_rest(checked: LoopSpec) -> None:
    """They keep what comparing events found, count on what single events say, and hold no event any more."""
    parts, shown = LoopChecks(checked), ShownRequests()
    name = topic(checked.loop, "behavior.interactions")
    windows = PartitionWindows(checked, name, 0, tallies=lambda: Tallies(parts, shown), closed_until=0.0)
    offset = itertools.count()

    def count(time: float, event_id: str) -> None:
        message = _act(value=11.0)
        windows.observe(time)
        windows.count(next(offset), Event(event_id, "test", "", time, message, None, name, 0, 0))

    for event_id in ("a", "b", "a"):
        count(BEGIN, event_id)
    for late in (60, 120):
        count(BEGIN + late, f"{late}")
    count(BEGIN + 1, "b")
    count(BEGIN + 180, "c")
    count(BEGIN + 2, "a")
    (first,) = [
        published for _, published in windows.due(idle=True) if published.window_start_time.ToSeconds() == BEGIN
    ]
    found = {(each.name, each.column): (each.seen, each.at_fault) for each in first.tallies}
    assert found["completeness.duplicates", "interactions.event_id"] == (4, 2)
    assert found["completeness.range", "interactions.value.rating"] == (5, 5)
    assert found["bots", ""] == (4, 0)


def test_a_sample_of_ids_tells_the_share() -> None:
    """Beyond the capacity a sample remains that is within it and unbiased, with all that is known of its ids."""
    ids: HashSample[int] = HashSample(500)
    for number in range(30_000):
        code = hash(("source", f"e{number % 20_000}"))
        if ids.takes(code):
            ids[code] = ids.get(code, 0) + 1
            ids.bound()
    assert 200 <= len(ids) <= 500
    repeated = 1 - len(ids) / sum(ids.values())
    assert repeated == pytest.approx(1 / 3, abs=0.08)
    with pytest.raises(ValueError, match="capacity = 0: must be at least 1"):
        HashSample(0)


def _says(judged: Judged) -> dict[tuple[str, str], tuple[float, bool]]:
    return {(each.name, each.column): (each.value, each.passed) for each in judged.checks}


def test_the_newest_windows_of_all_partitions_are_judged(checked: LoopSpec) -> None:
    """Tallies add up over partitions and windows; what left the newest windows counts no more."""
    windows = QualityWindows(kept=10)
    for partition, repeats in ((0, 4), (1, 0)):
        counting = Counting(checked)
        for number in range(10):
            counting.add("behavior.interactions", _act(number, value=5.0), BEGIN, event_id=f"e{max(number, repeats)}")
        windows.note(counting.window("behavior.interactions", BEGIN, partition=partition, unreadable=partition))
    said = _says(judge_windows(checked, windows, now=BEGIN))
    assert said["completeness.duplicates", "interactions.event_id"] == (4 / 20, False)
    assert said["completeness.missing", "interactions.value.rating"] == (0.0, True)
    for later in range(1, 4):
        windows.note(Counting(checked).window("behavior.interactions", BEGIN + 60 * later))
    assert not judge_windows(checked, windows, now=BEGIN).checks


def test_few_events_say_something_only_where_none_is_tolerated(checked: LoopSpec) -> None:
    """Below `min_events` a check is undecided, and an alert that it raised stands; any personal data fails."""
    windows, counting = QualityWindows(kept=10), Counting(checked)
    counting.add("behavior.interactions", _act(), BEGIN, event_id="e")
    counting.add("behavior.interactions", _act(), BEGIN, event_id="e")
    title = {"title": behavior.FieldValue(text="bob@example.org")}
    counting.add("catalog.items", behavior.ItemChanged(item_id="i", fields=title), BEGIN)
    for suffix in ("behavior.interactions", "catalog.items"):
        windows.note(counting.window(suffix, BEGIN))
    judged = judge_windows(checked, windows, now=BEGIN)
    assert _says(judged) == {
        ("personal_data", "items.title"): (1.0, False),
        ("personal_data", "interactions.user_id"): (0.0, True),
        ("completeness.missing", "items.title"): (0.0, True),
    }
    assert "completeness.duplicates" in judged.undecided
    published = live_quality(checked, None, judged, now=20.0)
    assert published is not None
    before = pb.LiveQuality()
    for name in ("completeness.duplicates", "completeness.volume"):
        before.failing[name].FromSeconds(10)
    alerts = {alert.name: alert for alert in follow_up(published, before.failing, judged.undecided)}
    assert alerts.keys() == {"live personal_data", "live completeness.volume"}
    assert alerts["live personal_data"].severity == monitor.ALERT_SEVERITY_CRITICAL
    assert alerts["live completeness.volume"].end_time.seconds == 20
    assert {name: at.seconds for name, at in published.failing.items()} == {
        "completeness.duplicates": 10,
        "personal_data": 20,
    }


def test_unreadable_events(checked: LoopSpec) -> None:
    """The share of what cannot be read is held against its limit, by topic."""
    windows = QualityWindows(kept=10)
    window = Counting(checked).window("catalog.items", BEGIN, unreadable=2)
    window.events = 18
    windows.note(window)
    said = _says(judge_windows(checked, windows, now=BEGIN))
    assert said["completeness.unreadable", "catalog.items"] == (0.1, False)


@pytest.mark.parametrize("clock", ["wall", "replay"])
def test_freshness_and_volume_are_of_the_wall_clock(checked: LoopSpec, clock: str) -> None:
    """On the wall clock a stream that stops is stale, and its volume falls; a replay is neither."""
    spec = checked.model_copy(update={"clock": clock})
    windows = QualityWindows(kept=200)
    for number in range(20):
        window = Counting(spec).window("behavior.interactions", BEGIN + 60 * number)
        window.events = 100 + number % 3
        window.newest_event_time.FromSeconds(int(BEGIN) + 60 * number + 59)
        windows.note(window)
    lateness, end = spec.max_lateness_s, BEGIN + 60 * 20
    steady = _says(judge_windows(spec, windows, now=end + lateness))
    stopped = _says(judge_windows(spec, windows, now=end + lateness + 60))
    stale = _says(judge_windows(spec, windows, now=end + 8 * 86_400))
    names = {name for name, _ in (*steady, *stopped, *stale)}
    if clock == "replay":
        assert not names & {"completeness.volume", "completeness.freshness"}
        return
    assert steady["completeness.volume", "interactions"][1]
    assert not stopped["completeness.volume", "interactions"][1]
    assert stopped["completeness.freshness", ""] == (lateness + 61, True)
    assert stale["completeness.freshness", ""][1] is False


def test_a_check_that_is_made_again_resolves(checked: LoopSpec) -> None:
    """What passes ends its alert; a quarantine is critical, since the next training run sets rows aside."""
    check = Check("bots", "", 0.5, 0.05, passed=False, detail="5 of 10")
    failed = live_quality(checked, None, Judged((check,)), now=10.0)
    assert failed is not None
    (alert,) = follow_up(failed, {})
    assert alert.severity == monitor.ALERT_SEVERITY_CRITICAL
    assert alert.message == "live bots = 0.5: must be at most 0.05 (5 of 10)"
    passed = live_quality(checked, None, Judged((Check("bots", "", 0.0, 0.05, passed=True),)), now=20.0)
    assert passed is not None
    (over,) = follow_up(passed, failed.failing)
    assert (over.alert_id, over.start_time.seconds, over.end_time.seconds) == (alert.alert_id, 10, 20)


@pytest.mark.adapter
async def test_the_worker_checks_the_live_stream_without_a_model(
    kafka: str, checked: LoopSpec, start_process: Start
) -> None:
    """Bad events of every kind are found in the stream, alerted and told, and what follows resolves their alerts."""
    spec = checked
    await create_topics(kafka, declared(spec))
    start_process("quality", GYRE_FEATURES_QUALITY_LIVE_S="0.5", GYRE_FEATURES_QUALITY_IDLE_S="0.5")
    phone, none = _title("call +44 20 7946 0958"), _title("")
    bot = _act(user="bot", item="z", request="r", value=11.0)
    seen_by_bot = _impression(spec, "r", ["a", "b", "c"], prices=[99, 99, 99])
    seen_by_bot.user_id = "bot"
    bad: list[Sent] = [
        ("catalog.items", behavior.ItemChanged(item_id="i", fields=phone), BEGIN - 30, "i"),
        ("catalog.items", behavior.ItemChanged(item_id="j", fields=none), BEGIN - 30, "j"),
        ("behavior.impressions", seen_by_bot, BEGIN, "s"),
        *(("behavior.interactions", bot, BEGIN + 1 + number, f"e{number % 25}") for number in range(40)),
    ]
    await _send(kafka, spec, bad)
    types = message_types(pb.LiveQuality, monitor.Alert)
    wanted = {
        "personal_data",
        "completeness.range",
        "completeness.missing",
        "completeness.duplicates",
        "sequence.never_shown",
        "bots",
    }

    async def alerts() -> dict[str, Any]:
        published = await read_compacted(kafka, topic(spec.loop, "alerts"), types)
        return {key.removeprefix(f"{spec.loop}-live-"): event.message for key, event in published.items()}

    async def raised() -> bool:
        assert wanted <= (await alerts()).keys(), sorted(await alerts())
        return True

    await eventually(raised, timeout_s=60, message="every check found its fault")
    assert (await alerts())["personal_data"].severity == monitor.ALERT_SEVERITY_CRITICAL
    published = (await read_compacted(kafka, topic(spec.loop, "features.live-quality"), types))[spec.loop].message
    assert published.version == ""
    assert wanted <= set(published.failing)
    assert "7946" not in str(published)

    good: list[Sent] = []
    for window in range(3):
        start, up = BEGIN + 600 + 60 * window, behavior.ItemChanged(item_id="i", fields=_title("Up"))
        good.append(("catalog.items", up, start, f"t{window}"))
        acts = [_act(number, value=5.0) for number in range(20)]
        good += [
            ("behavior.interactions", act, start + number, f"g{window}-{number}") for number, act in enumerate(acts)
        ]
    await _send(kafka, spec, good)

    async def over() -> bool:
        found = await alerts()
        return all(found[name].HasField("end_time") for name in ("personal_data", "completeness.duplicates", "bots"))

    await eventually(over, timeout_s=60, message="the newest windows are clean")


def _title(text: str) -> dict[str, behavior.FieldValue]:
    return {"title": behavior.FieldValue(text=text), "price": behavior.FieldValue(number=1)}


async def _send(kafka: str, spec: LoopSpec, sent: list[Sent]) -> None:
    """Everything goes to one partition of its topic, as the events of one user do."""
    async with Producer(kafka, source="test") as producer:
        for suffix, message, time, id_ in sent:
            name = topic(spec.loop, suffix)
            assert producer.enqueue(name, message, key="one", source="test", id=id_, time=time)
