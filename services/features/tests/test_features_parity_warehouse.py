"""The parity check on a real store and a real warehouse: reads between batches, and everything that may befall both."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Reader, RequestContext, State, state
from gyre_core.keys import pattern as store_keys
from gyre_core.spec import LoopSpec
from gyre_features.parity.log import Settled, read_log
from gyre_features.parity.loop import REBUILT
from gyre_features.privacy.erasure import erase_user
from gyre_features.warehouse.archive import Archive
from gyre_runtime.events import Event
from gyre_warehouse.tables import (
    APPLIED,
    INTERACTIONS,
    ensure_table,
)
from gyre_warehouse.tables import ITEMS as CATALOGUE
from redis.asyncio import Redis

from .parity_loop import BEGIN, DUPLICATES_S, ITEMS, Loop, catalogue, put_strange, ratings, turn


@pytest.fixture
def loop(spec: LoopSpec, redis: Redis, tmp_path: Path) -> Loop:
    """A loop that stands at the beginning."""
    return Loop(spec, redis, tmp_path)


@pytest.mark.adapter
@pytest.mark.parametrize("shards", [1, 3])
async def test_what_was_served_is_what_the_warehouse_gives(
    shards: int, sharded: Callable[[int], LoopSpec], redis: Redis, tmp_path: Path
) -> None:
    """Reads between the batches of a real store equal the replay of the archived events, in every shard."""
    loop = Loop(sharded(shards), redis, tmp_path)
    await turn(loop, range(9))
    report = await loop.check()
    found = report.found
    assert (found.impressions, found.mismatches, found.unknown, report.pending) == (9, 0, 0, 0), found.examples
    assert found.values == 9 * len(ITEMS) * len(loop.layout.columns)


@pytest.mark.adapter
async def test_the_first_impression_of_a_users_request_counts(
    counting_shown: LoopSpec, redis: Redis, tmp_path: Path
) -> None:
    """Others of the same user and request count neither online nor in the replay; those that name no request all do."""
    loop = Loop(counting_shown, redis, tmp_path)
    await turn(loop, range(2))

    def shown(user: str, request: str) -> Event:
        message = behavior.Impression(request_id=request, user_id=user, item_ids=["i0", "i1"], shown=2)
        return loop.event("behavior.impressions", message, BEGIN + 1200)

    async def count() -> float:
        values = await loop.store.read("u1", ["i0"])
        matrix, _ = Reader(loop.layout).matrix(
            values.user, values.everyone, values.items, ["i0"], RequestContext(BEGIN + 1200)
        )
        return float(matrix[0, loop.layout.index["shown_365d"]])

    before = await count()
    await loop.feed([shown("u1", "r"), shown("u1", "r"), shown("u2", "r")])
    await loop.feed([shown("u2", "r"), shown("u1", "r"), shown("u1", "s")])
    assert await count() == pytest.approx(before + 3, rel=1e-5)
    await loop.feed([shown("u1", ""), shown("u1", "")])
    await loop.feed([shown("u1", "")])
    assert await count() == pytest.approx(before + 6, rel=1e-5)
    await turn(loop, range(2, 5))
    found = (await loop.check()).found
    assert (found.impressions, found.mismatches, found.unknown) == (5, 0, 0), found.examples


@pytest.mark.adapter
async def test_a_row_that_nobody_can_read_fails_no_check(loop: Loop) -> None:
    """Another message's fields in the catalogue are set aside; all that was served is compared, and equal."""
    await turn(loop, range(3))
    await loop.archive.flush()
    put_strange(loop, CATALOGUE, fields='{"userId": "u", "type": "rating"}')
    await turn(loop, range(3, 6))
    report = await loop.check()
    found = report.found
    assert (found.impressions, found.mismatches, found.unknown, report.pending) == (6, 0, 0, 0), found.examples


@pytest.mark.adapter
@pytest.mark.parametrize("shards", [1, 3])
async def test_what_is_known_of_users_is_checked(
    shards: int, with_users: Callable[[int], LoopSpec], redis: Redis, tmp_path: Path
) -> None:
    """Fields of users, changed between the reads, are served and replayed alike."""
    loop = Loop(with_users(shards), redis, tmp_path)
    served = set()
    for step in range(8):
        known = {
            "member": behavior.FieldValue(boolean=step % 2 == 0),
            "likes": behavior.FieldValue(vector=behavior.Vector(values=[step, -step])),
        }
        changed = behavior.UserChanged(user_id=f"u{step % 3}", fields=known)
        at = BEGIN + 600 * step
        await loop.feed(
            [*catalogue(loop, step), *ratings(loop, 9, step=step), loop.event("catalog.users", changed, at)]
        )
        await loop.read(f"u{step % 4}", at + 600)
        values = await loop.store.read(f"u{step % 4}", ITEMS)
        matrix, _ = Reader(loop.layout).matrix(
            values.user, values.everyone, values.items, ITEMS, RequestContext(at + 600)
        )
        served.add(tuple(matrix[0, [loop.layout.index[name] for name in ("member", "likes_1")]].tolist()))
    found = (await loop.check()).found
    assert (found.impressions, found.mismatches, found.unknown) == (8, 0, 0), found.examples
    assert {(1.0, 0.0), (0.0, -1.0), (0.0, -5.0)} < served


@pytest.mark.adapter
@pytest.mark.parametrize("shards", [1, 3])
async def test_fields_that_came_late_are_made_up_for_alike(
    shards: int, sharded: Callable[[int], LoopSpec], redis: Redis, tmp_path: Path
) -> None:
    """Where ratings came before their item, or before the fields that held at their time, reads equal the replay."""
    loop = Loop(sharded(shards), redis, tmp_path)
    draw = random.Random(11)
    for step in range(12):
        now = BEGIN + 40 * step
        made = ratings(loop, 15, step=0)
        await loop.feed([each._replace(id=f"{step}-{each.id}", time=now + draw.random() * 40) for each in made])
        await loop.read(f"u{step % 6}", now + 40)
        changes = catalogue(loop, step)
        await loop.feed([each._replace(time=now - draw.random() * 30) for each in changes])
        await loop.read(f"u{step % 6}", now + 40)
    found = (await loop.check()).found
    assert (found.impressions, found.mismatches, found.unknown) == (24, 0, 0), found.examples


@pytest.mark.adapter
@pytest.mark.parametrize("shards", [1, 3])
async def test_a_fast_clock_keeps_no_late_field_from_the_others_in_the_replay_either(
    shards: int, sharded: Callable[[int], LoopSpec], redis: Redis, tmp_path: Path
) -> None:
    """Where one user's events, each a batch, say times of minutes after they arrived, reads equal the replay."""
    loop = Loop(sharded(shards), redis, tmp_path)
    draw = random.Random(13)
    for step in range(12):
        now = BEGIN + 20 * step
        made = ratings(loop, 15, step=0)
        times = [now + (280 if each.message.user_id == "u5" else draw.random() * 20) for each in made]
        made = [
            each._replace(id=f"{step}-{each.id}", time=at, arrival_time=now + 20)
            for each, at in zip(made, times, strict=True)
        ]
        for event in made:
            await loop.feed([event])
        changes = catalogue(loop, step)
        for each in changes:
            each.message.fields["genres"].categories.values[:] = [draw.choice(["action", "drama", "comedy"])]
        await loop.feed([each._replace(time=now - draw.random() * 10, arrival_time=now + 20) for each in changes])
        await loop.read(f"u{step % 5}", now + 20)
    found = (await loop.check()).found
    assert (found.impressions, found.mismatches, found.unknown) == (12, 0, 0), found.examples


@pytest.mark.adapter
@pytest.mark.parametrize("shards", [1, 3])
async def test_what_was_applied_before_all_reads_is_replayed_at_once(
    shards: int, sharded: Callable[[int], LoopSpec], redis: Redis, tmp_path: Path
) -> None:
    """The batches before the first read are joined, and every read still equals the replay; a fault is still found."""
    loop = Loop(sharded(shards), redis, tmp_path)
    for step in range(5):
        await loop.feed([*catalogue(loop, step), *ratings(loop, 50, step=step)])
    await turn(loop, range(5, 9))
    found = (await loop.check()).found
    assert (found.impressions, found.mismatches, found.unknown) == (4, 0, 0), found.examples
    table = ensure_table(loop.catalog, loop.spec.loop, APPLIED)
    logs = read_log(table, loop.layout.hash, settled=Settled(before=time.time()))
    assert all(len(log.batches) <= 2 for log in logs.values())
    await loop.read("u1", BEGIN + 9000, wrong=0.01)
    assert (await loop.check()).found.mismatches == 1


@pytest.mark.adapter
@pytest.mark.parametrize("shards", [1, 3])
async def test_repeats_are_known_by_append_times_in_the_replay_too(
    shards: int, sharded: Callable[[int], LoopSpec], redis: Redis, tmp_path: Path
) -> None:
    """An id counts again once the log has passed a window without it, and never within one; parity is 0."""
    loop = Loop(sharded(shards), redis, tmp_path)
    message = behavior.Interaction(user_id="u1", item_id="i1", type="rating", value=7)
    begin = time.time() // DUPLICATES_S * DUPLICATES_S
    for after_s in (
        0.0,
        0.01,
        DUPLICATES_S,
        2.0 * DUPLICATES_S,
        2.01 * DUPLICATES_S,
        3600.0,
        3599.0,
        3600.0 + DUPLICATES_S,
    ):
        await loop.assign()
        event = loop.event("behavior.interactions", message, BEGIN, id="sent again")
        other = loop.event("behavior.interactions", message, BEGIN)
        await loop.feed([each._replace(arrival_time=begin + after_s) for each in (event, other)])
        await loop.read("u1", BEGIN)
    value = (await loop.store.values([("item", "i1")]))["item", "i1"]
    assert value is not None
    assert State.unpack(loop.layout.slots("item"), value).sums[0] == pytest.approx(8 + 3)
    found = (await loop.check()).found
    assert (found.impressions, found.mismatches, found.unknown) == (8, 0, 0), found.examples


@pytest.mark.adapter
async def test_a_changed_value_is_found(loop: Loop) -> None:
    """One number that was served otherwise than the store held it is one mismatch, with request, item and column."""
    await turn(loop, range(4))
    await loop.read("u1", BEGIN + 3000, wrong=0.01)
    report = await loop.check()
    assert (report.found.impressions, report.found.mismatches) == (5, 1)
    (example,) = report.found.examples
    assert (example.request_id, example.item_id, example.column) == ("r5", ITEMS[0], loop.layout.columns[0])


@pytest.mark.adapter
async def test_a_changed_algebra_is_found(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the replay decays late events otherwise than the stream did, the check says so."""
    await turn(loop, range(4))
    monkeypatch.setattr(state.State, "_fold_late", lambda self, plan, time, value, categories: None)
    assert (await loop.check()).found.mismatches > 0


@pytest.mark.adapter
async def test_the_newest_reads_are_checked(loop: Loop) -> None:
    """A bound on the impressions keeps the newest, and still replays the whole log behind them."""
    await turn(loop, range(5))
    report = await loop.check(most=2)
    assert (report.found.impressions, report.found.mismatches) == (2, 0)
    assert report.events > 100


@pytest.mark.adapter
async def test_a_read_ahead_of_the_warehouse_waits(loop: Loop) -> None:
    """Batches that are not archived yet make their readers pending, neither unknown nor wrong."""
    await turn(loop, range(3))
    await loop.archive.flush()
    behind, loop.archive = loop.archive, Archive(loop.catalog, rows=10**6, seconds=60, payload_bytes=10**9)
    loop.archive.add = lambda events: behind.add([each for each in events if "interactions" not in each.topic])
    loop.archive.flush = behind.flush
    await turn(loop, range(3, 5))
    report = await loop.check()
    assert (report.found.impressions, report.found.mismatches, report.found.unknown) == (3, 0, 0)
    assert report.pending == 2


@pytest.mark.adapter
async def test_a_hole_in_the_log_is_no_mismatch(loop: Loop) -> None:
    """Reads of a batch that the log lacks, or of values that it may have changed, are unknown; the rest is checked."""
    loop.lost = {3}  # the second turn's ratings
    await turn(loop, range(6))
    found = (await loop.check()).found
    assert found.mismatches == 0
    assert found.impressions >= 1
    assert found.unknown >= 1
    assert found.impressions + found.unknown == 6


@pytest.mark.adapter
async def test_a_lost_store_that_was_rebuilt_is_no_mismatch(loop: Loop) -> None:
    """After Redis was lost and read everything again, older reads are unknown and newer ones are checked."""
    history: list[Event] = []
    add = loop.archive.add
    loop.archive.add = lambda events: (history.extend(events), add(events))[1]
    await turn(loop, range(4))
    for each in [key async for key in loop.redis.scan_iter(store_keys(loop.spec.loop))]:
        await loop.redis.delete(each)
    await loop.assign()
    await loop.stream.apply([each for each in history if not each.topic.endswith("applied")])
    await loop.read("u1", BEGIN + 9000, age_s=-120)
    report = await loop.check()
    assert (report.found.impressions, report.found.mismatches) == (1, 0), report.found.examples
    assert report.found.reasons == {REBUILT: 4}


@pytest.mark.adapter
async def test_a_batch_that_is_logged_twice_counts_once(loop: Loop) -> None:
    """A description that is sent again, since nobody acknowledged it, changes nothing."""
    sent: list[Event] = []
    add = loop.archive.add
    loop.archive.add = lambda events: (sent.extend(events), add(events))[1]
    await turn(loop, range(3))
    again = [each for each in sent if each.topic.endswith("applied")]
    await turn(loop, range(3, 5))
    for each in again:
        await add([loop.event("features.applied", each.message, each.time)])
    found = (await loop.check()).found
    assert (found.impressions, found.mismatches, found.unknown) == (5, 0, 0)


@pytest.mark.adapter
async def test_an_erased_user_is_no_mismatch(loop: Loop) -> None:
    """Where a forgotten user's events are gone, what they had changed is unknown; what they had not stays checked."""
    await turn(loop, range(3))
    await loop.archive.flush()
    erase_user(ensure_table(loop.catalog, loop.spec.loop, INTERACTIONS), "u2".__eq__, since_ms=0)
    found = (await loop.check()).found
    assert found.mismatches == 0
    assert found.impressions + found.unknown == 3
    assert found.unknown >= 1
