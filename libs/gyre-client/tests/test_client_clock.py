"""What imports and commands do about time: gaps, clocks, local times, and what supersedes what."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_client import ClientSettings, import_history
from gyre_core.features import FieldsChanged, UserInteraction
from gyre_core.spec import LoopSpec
from gyre_core.topics import BEHAVIOR, topic
from gyre_local.places import StackDirectories
from gyre_local.stack import record_loops
from gyre_runtime.admission import Admission
from gyre_runtime.events import Event, encode, message_types
from gyre_runtime.kafka import Producer, ensure_topics, read_records
from typer.testing import Result

pytestmark = pytest.mark.adapter

Gyre = Callable[..., Result]
TYPES = message_types(behavior.Interaction, behavior.Impression)
BEGIN, DAY_S = 1_365_000_000.0, 86_400.0
MAPPING = """
kind: interactions
user: who
item: what
type: {value: click}
time: {column: at, format: "%Y-%m-%d %H:%M:%S", zone: Europe/Vienna}
"""


async def decided(kafka: str, spec: LoopSpec, suffix: str = BEHAVIOR[0]) -> Counter[str]:
    """What becomes of the records of a topic of the loop: `admitted`, or the reason of each refusal."""
    admission, counts, name = Admission({spec.loop: spec}, TYPES), Counter[str](), topic(spec.loop, suffix)
    async for record in read_records(kafka, name):
        decision = admission.decide(record)
        if decision is not None:
            counts["admitted" if isinstance(decision, Event) else decision.reason] += 1
    return counts


async def send_click(kafka: str, spec: LoopSpec, time: float) -> None:
    """One click of another producer, which does not mark gaps."""
    message = behavior.Interaction(user_id="u0", item_id="i", type="click")
    async with Producer(kafka, source="shop") as producer:
        await producer.send_record(topic(spec.loop, BEHAVIOR[0]), encode(message, source="shop", time=time, key="u0"))


async def test_an_import_crosses_gaps(kafka: str, spec: LoopSpec) -> None:
    """History with pauses of months is admitted whole in a replay, whichever partitions it is in, also in two parts."""
    settings = ClientSettings(kafka=kafka)
    events = [UserInteraction(f"u{n % 9}", "i", "click", BEGIN + 40 * DAY_S * (n // 9) + n) for n in range(36)]
    await import_history(settings, spec, events[:18])
    await import_history(settings, spec, events)
    assert await decided(kafka, spec) == {"admitted": 36}


async def test_an_import_of_interactions_lets_the_answers_of_its_time_in(kafka: str, spec: LoopSpec) -> None:
    """Answers after an import are admitted, whether it leapt by a month or came there day by day, and up to its end."""
    settings = ClientSettings(kafka=kafka)
    leapt, day_by_day = (BEGIN + 30 * DAY_S,), tuple(BEGIN + (30 + 0.9 * day) * DAY_S for day in range(9))
    for days in ((BEGIN,), leapt, day_by_day):
        await import_history(settings, spec, [UserInteraction("u1", "i", "click", time) for time in days])
        async with Producer(kafka, source="shop") as producer:
            for number in range(9):
                answer = behavior.Impression(
                    request_id=f"r{days[-1]}-{number}", user_id=f"u{number}", item_ids=["i"], shown=1, method=1
                )
                time = days[-1] + 0.4 * DAY_S + number
                await producer.send(topic(spec.loop, BEHAVIOR[1]), answer, key=f"u{number}", time=time)
    assert await decided(kafka, spec, BEHAVIOR[1]) == {"admitted": 27}


async def test_one_event_ahead_makes_no_other_too_old(kafka: str, spec: LoopSpec) -> None:
    """An event that is admitted though it is 23 hours ahead costs none of those that come after it in time."""
    await ensure_topics(ClientSettings(kafka=kafka), [spec])
    for time in (BEGIN, BEGIN + 23 * 3600, BEGIN + 60, BEGIN + 7200, BEGIN + 23 * 3600 - 60):
        await send_click(kafka, spec, time)
    assert await decided(kafka, spec) == {"admitted": 5}
    await send_click(kafka, spec, BEGIN - 2 * 3600)
    assert await decided(kafka, spec) == {"admitted": 5, "TOO_OLD": 1}


async def test_a_leap_is_refused_until_the_clock_is_set(
    kafka: str, spec: LoopSpec, gyre: Gyre, loop_file: Path
) -> None:
    """An event of 2020 among those of 2013 is refused; after `gyre clock --to` one is taken; `--back` undoes it."""
    await ensure_topics(ClientSettings(kafka=kafka), [spec])
    for time in (BEGIN, BEGIN + 7 * 365 * DAY_S, BEGIN + 60):
        await send_click(kafka, spec, time)
    assert await decided(kafka, spec) == {"admitted": 2, "IN_THE_FUTURE": 1}

    async def clock(*words: str) -> Result:
        return await asyncio.to_thread(gyre, "clock", spec.loop, *words, kafka=kafka, loops=str(loop_file))

    done = await clock("--to", "2020-01-01T00:00:00z")
    assert done.exit_code == 0, done.output
    await send_click(kafka, spec, 1_577_836_800.0 + 5)
    await send_click(kafka, spec, BEGIN + 61)
    assert await decided(kafka, spec) == {"admitted": 3, "IN_THE_FUTURE": 1, "TOO_OLD": 1}
    assert (await clock("--to", str(BEGIN + 60), "--back")).exit_code == 0
    await send_click(kafka, spec, BEGIN + 62)
    assert await decided(kafka, spec) == {"admitted": 4, "IN_THE_FUTURE": 1, "TOO_OLD": 1}
    refused = await clock("--to", "2999-01-01T00:00:00Z")
    assert refused.exit_code == 1
    assert "from now" in refused.output


async def test_local_times_that_come_twice_are_counted(
    kafka: str, spec: LoopSpec, gyre: Gyre, loop_file: Path, tmp_path: Path
) -> None:
    """The import says how many there are and which was taken; a dry run says the same, and sends nothing."""
    mapping, path = tmp_path / "mapping.yaml", tmp_path / "clicks.jsonl"
    mapping.write_text(MAPPING)
    times = ["2013-10-27 02:30:00", "2013-10-27 01:30:00", "2013-03-31 02:30:00", "9999-12-31 23:00:00"]
    path.write_text("".join(json.dumps({"who": "u", "what": "i", "at": at}) + "\n" for at in times))
    words = ["import", str(loop_file), str(path), "--mapping", str(mapping)]
    dry = await asyncio.to_thread(gyre, *words, "--dry-run", kafka="127.0.0.1:1")
    assert dry.exit_code == 0, dry.output
    assert "dry run: 3 events fit, 1 rows rejected; nothing was sent" in dry.output
    sent = await asyncio.to_thread(gyre, *words, kafka=kafka)
    assert "3 events sent, 0 were there already, 1 rows rejected" in sent.output
    for output in (dry.output, sent.output):
        assert "1 local times are there twice, as summer time ends: the first of the two was taken" in output
        assert "1 local times are not there, as summer time begins" in output
    assert await decided(kafka, spec) == {"admitted": 3}


async def test_an_import_says_what_is_superseded(kafka: str, spec: LoopSpec) -> None:
    """A change of an item that is older than what its topic holds is counted; one of the same time is a correction."""
    settings = ClientSettings(kafka=kafka)
    await import_history(settings, spec, [FieldsChanged("item", "i", BEGIN, {"price": 20.0})])
    again = [
        FieldsChanged("item", "i", BEGIN - 1, {"price": 5.0}),
        FieldsChanged("item", "i", BEGIN, {"price": 10.0}),
        FieldsChanged("item", "j", BEGIN - 1, {"price": 5.0}),
    ]
    done = await import_history(settings, spec, again)
    assert (done.sent, done.superseded) == (3, 1)


async def test_a_loop_of_the_local_stack_is_found_without_its_file(
    kafka: str, spec: LoopSpec, gyre: Gyre, loop_file: Path, tmp_path: Path
) -> None:
    """`gyre clock` and `gyre import` know the loops that the local stack was brought up with; others are named so."""
    await ensure_topics(ClientSettings(kafka=kafka), [spec])
    var, mapping, path = tmp_path / "var", tmp_path / "mapping.yaml", tmp_path / "clicks.jsonl"
    record_loops(StackDirectories(var), [loop_file])
    mapping.write_text(MAPPING)
    path.write_text(json.dumps({"who": "u", "what": "i", "at": "2013-03-30 12:00:00"}))
    for words in (
        ["clock", spec.loop, "--to", "1370000000"],
        ["import", spec.loop, str(path), "--mapping", str(mapping)],
    ):
        done = await asyncio.to_thread(gyre, *words, kafka=kafka, var=str(var))
        assert done.exit_code == 0, done.output
    other = await asyncio.to_thread(gyre, "clock", "elsewhere", "--to", "1370000000", kafka=kafka, var=str(var))
    assert (other.exit_code, f"without GYRE_LOOPS there are {spec.loop}" in other.output) == (1, True), other.output
