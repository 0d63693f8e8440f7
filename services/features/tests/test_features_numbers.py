"""Sums and counts in the store, by script and by Python, against exact arithmetic that shares no code with either."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import lru_cache
from importlib.resources import files

import pytest
from gyre_core.features import Layout, State, UserInteraction, aggregate, merge
from gyre_core.spec import LoopSpec, parse_loop
from gyre_features.online import Applied, OnlineStore, Write
from gyre_features.online.layout_program import script_plan
from gyre_features.online.script import packed
from gyre_runtime.checkpoints import Checkpoint
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000
TICK_S = 2.0**-14
"""Event times are whole ticks, which float64 and decimal numbers hold alike."""
HOUR_S, DAY_S = 3600, 86_400
HALF_LIVES_S = (HOUR_S, DAY_S, 7 * DAY_S, 30 * DAY_S, 365 * DAY_S)
TICKS_BETWEEN = {"one-a-second": 16_384, "fifty-a-second": 328, "thousand-a-second": 16}
"""Users, and how many ticks their events are apart."""
SPEC = """
version: 1
loop: {loop}
clock: replay
events: {{interactions: {{click: {{value: {{min: 0, max: 10}}}}}}}}
features:
  - {{name: clicks, kind: decayed_count, scope: user, events: [click], half_lives: [1h, 1d, 7d, 30d, 365d]}}
  - name: score
    kind: decayed_mean
    scope: user
    events: [click]
    half_lives: [7d]
    prior: {{mean: 5, weight: 1}}
  - {{name: hourly, kind: windowed_count, scope: user, events: [click], windows: [1h]}}
training: {{label: {{events: [click], attribution_window: 30m}}}}
shards: {{kafka_partitions: 1, online_shards: 1}}
"""
EXACT = Context(prec=50)
SLOW = (pytest.mark.slow, pytest.mark.timeout(3600))
_SCRIPTS_AT_ONCE = 500


@pytest.fixture
def spec(loop_name: str) -> LoopSpec:
    """A loop of sums with half-lives from an hour to a year."""
    return parse_loop(SPEC.format(loop=loop_name), source="test")


@lru_cache(maxsize=4096)
def factor(ticks: int, half_life_s: int) -> Decimal:
    """2^-(time / half-life), to 50 digits."""
    return EXACT.power(2, EXACT.divide(Decimal(-ticks) * Decimal(TICK_S), half_life_s))


@dataclass
class ExactSums:
    """Decayed counts and a decayed sum of values of one user, by their definition, in decimal arithmetic."""

    newest: int = 0
    counts: dict[int, Decimal] = field(default_factory=lambda: dict.fromkeys(HALF_LIVES_S, Decimal(0)))
    values: Decimal = Decimal(0)

    def add(self, ticks: int, value: float) -> None:
        """Take in an event at a time in ticks."""
        passed, lag = max(ticks - self.newest, 0), max(self.newest - ticks, 0)
        self.newest = max(self.newest, ticks)
        for half_life_s, total in self.counts.items():
            weight = factor(lag, half_life_s)
            self.counts[half_life_s] = EXACT.fma(total, factor(passed, half_life_s), weight)
        weight = EXACT.multiply(factor(lag, 7 * DAY_S), Decimal(value))
        self.values = EXACT.fma(self.values, factor(passed, 7 * DAY_S), weight)

    def error_of(self, state: State) -> float:
        """The greatest relative distance of a state's sums from the exact ones."""
        found = {slot: Decimal(total) for slot, total in zip(state.layout.sums, state.sums, strict=True)}
        exact = {slot: self.values if slot.measure == "value" else self.counts[int(slot.half_life_s)] for slot in found}
        return max(float(abs(total - exact[slot]) / exact[slot]) for slot, total in found.items())


def events_of(user: str, count: int) -> Iterator[tuple[int, float]]:
    """(time in ticks, value) of a user's events: unevenly apart, every seventh late."""
    draw, apart, now = random.Random(user), TICKS_BETWEEN[user], 0
    for number in range(count):
        late = number % 7 == 6
        now += 0 if late else apart * draw.randrange(2, 7) // 4
        yield max(now - 40 * apart, 0) if late else now, draw.randrange(1, 21) / 2


@pytest.mark.parametrize("merges", [10_000, pytest.param(1_000_000, marks=SLOW)])
async def test_decayed_sums_stay_exact_over_many_merges(redis: Redis, spec: LoopSpec, merges: int) -> None:
    """Merged one event at a time, 1 to 1,000 a second, sums are within 1e-8 of exact ones, in script and Python."""
    layout, store = Layout.compile(spec), OnlineStore(redis, spec, Layout.compile(spec))
    slots, plan = layout.slots("user"), script_plan(spec, layout, kept=1)
    script = await redis.script_load((files("gyre_features.online") / "apply.lua").read_text())
    exact = {user: ExactSums() for user in TICKS_BETWEEN}
    streams = {user: events_of(user, merges) for user in TICKS_BETWEEN}
    values, pipe, place = dict[str, bytes](), redis.pipeline(transaction=False), ("any", 0)
    for number in range(merges):
        deltas = {}
        for user, stream in streams.items():
            ticks, value = next(stream)
            exact[user].add(ticks, value)
            event = UserInteraction(user, "i", "click", BEGIN + ticks * TICK_S, value)
            delta = aggregate(layout, [event], lambda _: None)["user", user]
            deltas["user", user] = delta.pack(0)
            values[user] = merge(slots, values.get(user), delta.pack(number + 1))
        following = {place: Checkpoint(number + 1)}
        write = Write({place: number}, following, deltas, identities={}, description=b"-", published=[number])
        keys, arguments = packed(write, 0, store.names, plan=plan)
        pipe.evalsha(script, len(keys), *keys, *arguments)
        if len(pipe) == _SCRIPTS_AT_ONCE:
            assert {answer[0] for answer in await pipe.execute()} == {1}
    await pipe.execute()
    for user, wanted in exact.items():
        stored = (await store.values([("user", user)]))["user", user]
        assert stored is not None
        for state in (State.unpack(slots, stored), State.unpack(slots, values[user])):
            assert wanted.error_of(state) < 1e-8, user
        assert stored == values[user]


async def test_window_counts_are_exact_to_2_to_the_53(redis: Redis, spec: LoopSpec) -> None:
    """Where float32 cannot count on, at 2^24, and up to where float64 cannot, each further event counts."""
    layout, store, place = Layout.compile(spec), OnlineStore(redis, spec, Layout.compile(spec)), ("any", 0)
    slots, plan, entity = layout.slots("user"), layout.plan("user", "click"), ("user", "ann")
    assert plan is not None
    value, counted = None, 0
    for number, count in enumerate([2**24, 1, 2**31, 1, 2**53 - 2**31 - 2**24 - 3, 1]):
        delta, counted = State(slots), counted + count
        delta.fold_count(plan, BEGIN, count=count)
        value = merge(slots, value, delta.pack(number + 1))
        following = {place: Checkpoint(number + 1)}
        write = Write({place: number}, following, {entity: delta.pack(0)}, identities={}, description=b"-")
        assert isinstance(await store.apply(0, write), Applied)
        stored = (await store.values([entity]))[entity]
        assert stored is not None
        for state in (State.unpack(slots, stored), State.unpack(slots, value)):
            assert sum(map(int, state.buckets)) == counted
    assert counted == 2**53
