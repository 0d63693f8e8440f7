"""Dead letters on the real Kafka: listed with their reason, put back as they were, once."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_client import ClientSettings, NotFound, Unavailable, list_dead_letters, replay_dead_letters
from gyre_client.clock import clock_mark
from gyre_core.spec import LoopSpec
from gyre_core.topics import dead_letter_topic, topic
from gyre_local.testing import eventually
from gyre_runtime.events import FIRST_APPEND_TIME, Event, Record, encode, message_types
from gyre_runtime.kafka import Consumer, Producer, ensure_topics, read_records
from typer.testing import Result

pytestmark = pytest.mark.adapter
SUFFIX = "behavior.interactions"
Poison = Callable[[], Awaitable[Record]]


@asynccontextmanager
async def consuming(kafka: str, loop: str) -> AsyncIterator[list[str]]:
    """A consumer that takes clicks and refuses everything else; the ids it took."""
    taken: list[str] = []

    async def handle(events: list[Event]) -> None:
        for event in events:
            if event.message.type != "click":
                raise ValueError(f"type {event.message.type}: must be click")
        taken.extend(event.id for event in events)

    types = message_types(behavior.Interaction)
    async with Consumer(kafka, group=f"test-{loop}", topics=[topic(loop, SUFFIX)], types=types) as consumer:
        task = asyncio.create_task(consumer.run(handle))
        try:
            yield taken
        finally:
            consumer.stop()
            await task


@pytest.fixture
async def poisoned(kafka: str, spec: LoopSpec) -> Record:
    """A record that no consumer can read was dead-lettered, and so was one that the handler refuses."""
    loop = spec.loop
    await ensure_topics(ClientSettings(kafka=kafka), [spec])
    good = behavior.Interaction(user_id="u", item_id="i", type="click")
    refused = behavior.Interaction(user_id="u", item_id="i", type="rating", value=5)
    unreadable = Record(b"u", b"\xff not protobuf", encode(good, source="shop", id="bad", time=5.0).headers)
    async with Producer(kafka, source="shop") as producer, consuming(kafka, loop) as taken:
        await producer.send_record(topic(loop, SUFFIX), unreadable)
        await producer.send(topic(loop, SUFFIX), refused, key="u", id="refused", time=6.0)
        await producer.send(topic(loop, SUFFIX), good, key="u", id="good", time=7.0)
        await eventually(lambda: taken == ["good"])

        async def two_letters() -> bool:
            return len(await list_dead_letters(kafka, loop)) == 2

        await eventually(two_letters)
    return unreadable


async def test_letters_are_listed_with_reason_and_origin(kafka: str, spec: LoopSpec, poisoned: Record) -> None:
    """Each letter tells why it was refused, by whom, and where it came from."""
    letters = {each.reason: each for each in await list_dead_letters(kafka, spec.loop)}
    assert set(letters) == {"BAD_PAYLOAD", "HANDLER_FAILED"}
    assert "must be click" in letters["HANDLER_FAILED"].error
    for each in letters.values():
        assert each.origin.startswith(f"{topic(spec.loop, SUFFIX)}/")
        assert (each.group, each.replayed) == (f"test-{spec.loop}", False)


async def test_a_replay_puts_the_original_back_once(kafka: str, spec: LoopSpec, poisoned: Record) -> None:
    """Key, bytes and headers are the original's, with when Kafka took it in; a second replay finds nothing to do."""
    name = topic(spec.loop, SUFFIX)
    before = [each async for each in read_records(kafka, name)]
    assert await replay_dead_letters(kafka, spec.loop) == 2
    assert await replay_dead_letters(kafka, spec.loop) == 0
    after = [each async for each in read_records(kafka, name)]
    assert len(after) == len(before) + 2
    added = [
        each for each in after if (each.partition, each.offset) not in {(old.partition, old.offset) for old in before}
    ]
    taken_in = [(FIRST_APPEND_TIME, str(before[0].timestamp).encode())]
    assert (poisoned.key, poisoned.value, [*poisoned.headers, *taken_in]) in [
        (each.key, each.value, list(each.headers)) for each in added
    ]
    assert all(each.replayed for each in await list_dead_letters(kafka, spec.loop))


async def test_what_stays_unreadable_becomes_a_new_letter(kafka: str, spec: LoopSpec, poisoned: Record) -> None:
    """A replayed record that is refused again is dead-lettered again, as a letter that was not replayed yet."""
    await replay_dead_letters(kafka, spec.loop)

    async def again() -> bool:
        letters = await list_dead_letters(kafka, spec.loop)
        return [each.replayed for each in letters] == [True, True, False, False]

    async with consuming(kafka, spec.loop):
        await eventually(again)


async def test_two_replays_at_once_do_not_repeat_each_other(kafka: str, spec: LoopSpec, poisoned: Record) -> None:
    """However two replays interleave, each letter is back in its topic once."""
    name = topic(spec.loop, SUFFIX)
    before = len([each async for each in read_records(kafka, name)])
    replays = [replay_dead_letters(kafka, spec.loop) for _ in range(2)]
    outcomes = await asyncio.gather(*replays, return_exceptions=True)
    if any(isinstance(each, BaseException) for each in outcomes):
        await replay_dead_letters(kafka, spec.loop)
    assert len([each async for each in read_records(kafka, name)]) == before + 2


async def test_a_letter_that_cannot_hold_its_record_is_replayed_from_its_place(
    kafka: str, spec: LoopSpec, gyre: Callable[..., Result]
) -> None:
    """A record too large for its letter is read again where it came from; once it is deleted, the replay says GONE."""
    name = topic(spec.loop, SUFFIX)
    await ensure_topics(ClientSettings(kafka=kafka), [spec])
    large = Record(b"u", b"\xff" * 5_000_000, encode(behavior.Interaction(), source="shop", id="large").headers)
    producer = AIOKafkaProducer(bootstrap_servers=kafka, compression_type="gzip", max_request_size=8_000_000)
    await producer.start()
    sent = await producer.send_and_wait(name, large.value, key=large.key, headers=large.headers)
    await producer.stop()

    async def letters(count: int) -> bool:
        return len(await list_dead_letters(kafka, spec.loop)) == count

    async with consuming(kafka, spec.loop):
        await eventually(partial(letters, 1))
        assert "\n1 replayed" in "\n" + (await asyncio.to_thread(gyre, "dlq", "replay", spec.loop, kafka=kafka)).output
        await eventually(partial(letters, 2))
    copies = [each for each in [each async for each in read_records(kafka, name)] if each.value == large.value]
    came = [(FIRST_APPEND_TIME, str(sent.timestamp).encode())]
    assert [(each.key, list(each.headers)) for each in copies] == [
        (large.key, large.headers),
        (large.key, large.headers + came),
    ]
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.delete_records({TopicPartition(name, sent.partition): RecordsToDelete(copies[-1].offset + 1)})
    await admin.close()
    output = (await asyncio.to_thread(gyre, "dlq", "replay", spec.loop, kafka=kafka)).output
    assert f"{name}/{sent.partition}/{copies[-1].offset}: GONE" in output
    assert "0 replayed, 1 cannot be" in output


async def test_an_unknown_topic_is_refused(kafka: str, loop: str) -> None:
    """A topic that the loop does not have is named, together with those it has."""
    with pytest.raises(NotFound, match="must be one of behavior"):
        await list_dead_letters(kafka, loop, "behavior.clicks")


async def test_an_unknown_loop_is_refused(kafka: str, spec: LoopSpec, gyre: Callable[..., Result]) -> None:
    """A loop without a topic in Kafka ends `gyre dlq` with an error, which names those that have; no table is shown."""
    await ensure_topics(ClientSettings(kafka=kafka), [spec])
    for words in (("list", "elsewhere"), ("replay", "elsewhere"), ("show", "elsewhere", SUFFIX, "0/0")):
        result = await asyncio.to_thread(gyre, "dlq", *words, kafka=kafka)
        assert result.exit_code == 1, result.output
        assert "UNKNOWN_LOOP: loop = 'elsewhere': must be one of " in result.output
        assert spec.loop in result.output
    known = await asyncio.to_thread(gyre, "dlq", "list", spec.loop, kafka=kafka)
    assert (known.exit_code, known.output.strip()) == (0, f"no dead letters in {spec.loop}")


async def test_without_kafka_a_replay_says_so() -> None:
    """Kafka is not there: `Unavailable`, and no endless wait."""
    with pytest.raises(Unavailable):
        await replay_dead_letters("127.0.0.1:9", "shop")


async def test_the_commands_list_show_and_replay(
    kafka: str, spec: LoopSpec, poisoned: Record, gyre: Callable[..., Result]
) -> None:
    """`gyre dlq` lists letters, shows one with its payload, and replays them once."""

    async def run(*words: str) -> Any:
        result = await asyncio.to_thread(gyre, "dlq", *words, kafka=kafka)
        assert result.exit_code == 0, result.output
        return result.output

    listed = await run("list", spec.loop)
    assert "HANDLER_FAILED" in listed
    assert "BAD_PAYLOAD: BAD_PAYLOAD" not in listed
    letters = await list_dead_letters(kafka, spec.loop)
    for each in letters:
        assert f"{each.topic}  {each.partition}/{each.offset}" in listed
        assert each.error in listed
    facts = {each["reason"]: each for each in json.loads(await run("list", spec.loop, "--json"))}
    assert {(each["topic"], each["partition"], each["offset"]) for each in facts.values()} == {
        (each.topic, each.partition, each.offset) for each in letters
    }
    assert not facts["BAD_PAYLOAD"]["error"].startswith("BAD_PAYLOAD")
    (refused,) = [each for each in await list_dead_letters(kafka, spec.loop) if each.reason == "HANDLER_FAILED"]
    shown = await run("show", spec.loop, SUFFIX, f"{refused.partition}/{refused.offset}")
    assert '"type": "rating"' in shown
    assert "ce_id: refused" in shown
    async with Producer(kafka, source="shop") as producer:
        without = Record(None, b"", [("gyre_reason", b"HANDLER_FAILED"), ("other", None)])  # type: ignore[list-item]
        await producer.send_record(dead_letter_topic(topic(spec.loop, SUFFIX)), without)
    (null,) = [each for each in await list_dead_letters(kafka, spec.loop) if not each.group]
    assert "\nother: \n" in await run("show", spec.loop, SUFFIX, f"{null.partition}/{null.offset}")
    assert "3 replayed" in await run("replay", spec.loop)
    assert "0 replayed" in await run("replay", spec.loop)


async def test_the_payload_of_a_refused_mark_is_shown(kafka: str, spec: LoopSpec, gyre: Callable[..., Result]) -> None:
    """A letter of any payload that topics carry, such as a mark of the clock, is shown with what it holds."""
    name = topic(spec.loop, SUFFIX)
    await ensure_topics(ClientSettings(kafka=kafka), [spec])
    mark = encode(clock_mark(1_400_000_000.0), source="gyre/clock", id="mark")
    letter = Record(b"", mark.value, [*mark.headers, ("gyre_reason", b"IN_THE_FUTURE"), ("gyre_error", b"too far")])
    async with Producer(kafka, source="test") as producer:
        await producer.send_record(dead_letter_topic(name), letter)
    (found,) = await list_dead_letters(kafka, spec.loop)
    place = f"{found.partition}/{found.offset}"
    shown = (await asyncio.to_thread(gyre, "dlq", "show", spec.loop, SUFFIX, place, kafka=kafka)).output
    assert '"clock_time": "2014-05-13T16:53:20Z"' in shown
