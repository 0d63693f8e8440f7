"""The SDK against a real gRPC server: what it sends, what it raises, what it repeats."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gyre_client import (
    ClientSettings,
    DeadlineExceeded,
    GyreClient,
    Interaction,
    Invalid,
    Item,
    Unauthenticated,
    Unavailable,
    User,
)
from gyre_runtime.tracing import is_sampled

ServeGateway = Callable[..., Awaitable[ClientSettings]]


async def test_rank_sends_everything_it_is_given(serve: ServeGateway, gateway: Any) -> None:
    """User, candidates, limit, time to the microsecond, numbers, labels and request id reach the gateway."""
    async with GyreClient(settings=await serve()) as client:
        answer = await client.rank(
            "shop",
            "u1",
            ["a", "b"],
            limit=1,
            time=1373457600.25,
            numbers={"device": 2.0},
            request_id="r1",
            labels={"referrer": "mail"},
        )
    assert [item.item_id for item in answer.items] == ["b", "a"]
    (request,) = gateway.requests
    assert (request.loop, request.user_id, list(request.item_ids), request.limit) == ("shop", "u1", ["a", "b"], 1)
    assert request.context.request_time.ToMicroseconds() == 1373457600250000
    assert (dict(request.context.numbers), request.request_id) == ({"device": 2.0}, "r1")
    assert dict(request.context.labels) == {"referrer": "mail"}


async def test_without_a_time_the_gateway_decides(serve: ServeGateway, gateway: Any) -> None:
    """A request without a time carries none, and so does an event."""
    async with GyreClient(settings=await serve()) as client:
        await client.recommend("shop", "u1", limit=3)
        await client.track("shop", [Interaction("u1", "i1", "click")])
    recommend, track = gateway.requests
    assert not recommend.context.HasField("request_time")
    assert not track.events[0].HasField("event_time")


async def test_a_sampled_request_forces_its_trace(serve: ServeGateway, gateway: Any) -> None:
    """`sampled` sends a sampled trace context, and other requests send none."""
    async with GyreClient(settings=await serve()) as client:
        await client.rank("shop", "u1", ["a"], sampled=True)
        await client.rank("shop", "u1", ["a"])
    sampled, other = gateway.metadata
    assert is_sampled(sampled["traceparent"])
    assert not is_sampled(other.get("traceparent"))


async def test_events_keep_their_kinds_of_values(serve: ServeGateway, gateway: Any) -> None:
    """Numbers, booleans, texts and lists become the field kinds of the protocol, and a value of 0 is sent."""
    fields = {"price": 2, "sold": True, "title": "x", "tags": ["old", "new"]}
    async with GyreClient(settings=await serve()) as client:
        ids = await client.track(
            "shop", [Item("i1", fields, time=5.0, event_id="e1"), Interaction("u", "i", "rating", value=0.0)]
        )
    item, interaction = gateway.requests[0].events
    sent = item.item_changed.fields
    assert (sent["price"].number, sent["sold"].boolean, sent["title"].text) == (2.0, True, "x")
    assert sent["sold"].WhichOneof("kind") == "boolean"
    assert list(sent["tags"].categories.values) == ["old", "new"]
    assert interaction.interaction.HasField("value")
    assert ids[0] == "e1"
    assert ids[1]


async def test_many_events_go_in_several_calls(serve: ServeGateway, gateway: Any) -> None:
    """More events than a call takes are split, and all ids come back in order."""
    events = [Interaction("u", "i", "click", event_id=f"e{number}") for number in range(2001)]
    async with GyreClient(settings=await serve()) as client:
        assert await client.track("shop", events) == [event.event_id for event in events]
    assert [len(request.events) for request in gateway.requests] == [1000, 1000, 1]


async def test_a_repeated_track_sends_the_same_event_ids(serve: ServeGateway, gateway: Any) -> None:
    """When the gateway is away for a moment the call is repeated, and the events cannot count twice."""
    gateway.errors = [Unavailable("KAFKA_UNAVAILABLE", "later")]
    async with GyreClient(settings=await serve()) as client:
        ids = await client.track("shop", [Interaction("u", "i", "click")])
    first, second = gateway.requests
    assert [event.event_id for event in first.events] == ids
    assert first == second


async def test_tracking_again_after_a_failed_chunk_repeats_no_event(serve: ServeGateway, gateway: Any) -> None:
    """What the first call took in has the same ids in the second, which sends all again."""
    events = [Interaction("u", f"i{number}", "click") for number in range(1000)] + [Item("i"), Item("j")]
    settings = await serve()
    async with GyreClient(settings=settings) as client:
        gateway.wait = lambda: _fails_second(gateway)
        with pytest.raises(Invalid):
            await client.track("shop", events)
        gateway.wait = None
        ids = await client.track("shop", events)
    first, _, again, rest = gateway.requests
    assert [event.event_id for event in first.events] == [event.event_id for event in again.events] == ids[:1000]
    assert [event.event_id for event in rest.events] == ids[1000:]
    assert len(set(ids)) == len(events)


async def _fails_second(gateway: Any) -> None:
    if len(gateway.requests) == 2:
        raise Invalid("INVALID_FIELD", "the second chunk is refused")


async def test_each_event_made_is_another_event(serve: ServeGateway, gateway: Any) -> None:
    """Two events that say the same are two; one object sent twice, and one with an id of the caller's, is one."""
    clicks = [Interaction("u", "i", "click") for _ in range(2)]
    async with GyreClient(settings=await serve()) as client:
        ids = await client.track("shop", [*clicks, clicks[0], Interaction("u", "i", "click", event_id="mine")])
    assert ids == [clicks[0].event_id, clicks[1].event_id, clicks[0].event_id, "mine"]
    assert len(set(ids)) == 3


async def test_an_application_says_whose_ids_its_events_have(serve: ServeGateway, gateway: Any) -> None:
    """`source` reaches the gateway, given or by the setting; without it none does."""
    settings = await serve()
    named = settings.model_copy(update={"source": "blog"})
    for given, source in ((settings, "shop"), (named, None), (settings, None)):
        async with GyreClient(settings=given, source=source) as client:
            await client.track("shop", [Interaction("u", "i", "click", event_id="1")])
    assert [request.source for request in gateway.requests] == ["shop", "blog", ""]


async def test_the_error_of_the_gateway_is_raised_again(serve: ServeGateway) -> None:
    """A request that breaks a rule raises `Invalid`, which names the field."""
    async with GyreClient(settings=await serve()) as client:
        with pytest.raises(Invalid) as caught:
            await client.rank("shop", "", ["a"])
    assert caught.value.violations[0].field == "user_id"


NAN = float("nan")
WRONG_REQUESTS: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"item_ids": "abc"}, TypeError, "item_ids = 'abc': must be a list of texts"),
    ({"item_ids": 5}, TypeError, "item_ids = 5: must be a list of texts"),
    ({"item_ids": ["a", 7]}, TypeError, "item_ids[1] = 7: must be a text"),
    ({"item_ids": ["\ud800"]}, ValueError, r"item_ids[0] = '\ud800': must be UTF-8 text"),
    ({"user_id": 1}, TypeError, "user_id = 1: must be a text"),
    ({"loop": None}, TypeError, "loop = None: must be a text"),
    ({"limit": -1}, ValueError, "limit = -1: must be 0 to 1000"),
    ({"limit": 1.5}, TypeError, "limit = 1.5: must be a whole number"),
    ({"limit": True}, TypeError, "limit = True: must be a whole number"),
    ({"limit": 2**32}, ValueError, "limit = 4294967296: must be 0 to 1000"),
    ({"time": NAN}, ValueError, "time = nan: must be a time from year 1 to 9999, in unix seconds"),
    ({"time": 1e13}, ValueError, "time = 1e+13: must be a time from year 1 to 9999, in unix seconds"),
    ({"time": "now"}, TypeError, "time = 'now': must be a number"),
    ({"numbers": {"hour": "3"}}, TypeError, "numbers[hour] = '3': must be a number"),
    ({"numbers": {"hour": 10**400}}, ValueError, "must fit into a double"),
    ({"labels": {"device": 3}}, TypeError, "labels[device] = 3: must be a text"),
    ({"labels": ["phone"]}, TypeError, "labels = ['phone']: must be a mapping of names to values"),
    ({"request_id": 7}, TypeError, "request_id = 7: must be a text"),
    ({"tiem": 5.0}, TypeError, "tiem: must be one of time, numbers, labels, request_id, sampled, timeout_s"),
)


@pytest.mark.parametrize(("changes", "kind", "message"), WRONG_REQUESTS)
async def test_a_wrong_argument_is_named_and_nothing_is_sent(
    changes: dict[str, Any], kind: type[Exception], message: str, serve: ServeGateway, gateway: Any
) -> None:
    """Field, value and rule stand in the error, of `rank` and `recommend` alike."""
    given = {"loop": "shop", "user_id": "u", "item_ids": ["a"]} | changes
    async with GyreClient(settings=await serve()) as client:
        caught = (await asyncio.gather(client.rank(**given), return_exceptions=True))[0]
        assert (type(caught), message in str(caught)) == (kind, True), repr(caught)
        if "item_ids" not in changes:
            del given["item_ids"]
            caught = (await asyncio.gather(client.recommend(**given), return_exceptions=True))[0]
            assert (type(caught), message in str(caught)) == (kind, True), repr(caught)
    assert gateway.requests == []


WRONG_EVENTS: tuple[tuple[Any, type[Exception], str], ...] = (
    (Interaction("u", "i", "click"), TypeError, "must be a list of Interaction, Item and User"),
    ([{"user_id": "u"}], TypeError, "events[0] = {'user_id': 'u'}: must be an Interaction, Item or User"),
    ([Item("i"), Interaction("u", 7, "click")], TypeError, "events[1].item_id = 7: must be a text"),  # type: ignore[arg-type]
    ([Interaction("u", "i", "click", value="8")], TypeError, "events[0].value = '8': must be a number"),  # type: ignore[arg-type]
    ([Interaction("u", "i", "click", time=NAN)], ValueError, "events[0].time = nan: must be a time"),
    ([Item("i", {"price": None})], TypeError, "events[0].fields[price] = None: must be a number, a truth value"),  # type: ignore[dict-item]
    ([Item("i", {"place": [0.5, "x"]})], TypeError, "events[0].fields[place][1] = 'x': must be a number"),  # type: ignore[list-item]
    ([User("u", {1: 2.0})], TypeError, "events[0].a name in fields = 1: must be a text"),  # type: ignore[dict-item]
    ([*[Item("i")] * 1000, Item("i", time="today")], TypeError, "events[1000].time = 'today': must be a number"),  # type: ignore[arg-type]
)


@pytest.mark.parametrize(("events", "kind", "message"), WRONG_EVENTS)
async def test_a_wrong_event_is_named_and_nothing_is_sent(
    events: Any, kind: type[Exception], message: str, serve: ServeGateway, gateway: Any
) -> None:
    """Index, field, value and rule stand in the error; no call of several is made either."""
    async with GyreClient(settings=await serve()) as client:
        caught = (await asyncio.gather(client.track("shop", events), return_exceptions=True))[0]
    assert (type(caught), message in str(caught)) == (kind, True), repr(caught)
    assert gateway.requests == []


async def test_numbers_of_numpy_are_numbers(serve: ServeGateway, gateway: Any) -> None:
    """Times, limits, contexts and fields may come from arrays."""
    vector = np.array([0.5, 1.5], dtype=np.float32)
    async with GyreClient(settings=await serve()) as client:
        await client.rank("shop", "u", np.array(["a", "b"]), limit=np.int64(1), numbers={"hour": np.float32(3)})  # type: ignore[arg-type]
        await client.track("shop", [Item("i", {"price": np.int64(2), "place": vector}, time=np.float64(5))])  # type: ignore[dict-item]
    rank, track = gateway.requests
    assert (list(rank.item_ids), rank.limit, dict(rank.context.numbers)) == (["a", "b"], 1, {"hour": 3.0})
    sent = track.events[0].item_changed.fields
    assert (sent["price"].number, list(sent["place"].vector.values)) == (2.0, [0.5, 1.5])


async def test_a_gateway_that_is_not_there_is_unavailable() -> None:
    """Nothing listens: `Unavailable` or `DeadlineExceeded` within the given time."""
    async with GyreClient("127.0.0.1:9", timeout_s=0.3) as client:
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await client.rank("shop", "u", ["a"])


async def test_a_slow_gateway_exceeds_the_deadline(serve: ServeGateway, gateway: Any) -> None:
    """The deadline of the call holds, whatever the gateway does."""
    gateway.wait = asyncio.Event().wait
    async with GyreClient(settings=await serve()) as client:
        with pytest.raises(DeadlineExceeded):
            await client.rank("shop", "u", ["a"], timeout_s=0.2)


async def test_the_token_opens_a_closed_gateway(serve: ServeGateway, tmp_path: Path) -> None:
    """Without the token the gateway refuses; with it, given or by file, it answers."""
    secret = tmp_path / "token"
    secret.write_text("open sesame\n")
    settings = await serve(token_file=secret)
    async with GyreClient(settings=settings) as client:
        with pytest.raises(Unauthenticated):
            await client.rank("shop", "u", ["a"])
    for allowed in (
        settings.model_copy(update={"token": "open sesame"}),
        settings.model_copy(update={"token_file": secret}),
    ):
        async with GyreClient(settings=allowed) as client:
            assert (await client.rank("shop", "u", ["a"])).items
    async with GyreClient(settings=settings, token="open sesame") as client:
        assert (await client.rank("shop", "u", ["a"])).items
