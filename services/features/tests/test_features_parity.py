"""The parity check against reads that were really made: it finds nothing where all is well, and every change."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from gyre_core.features import (
    GLOBAL_ID,
    FieldsChanged,
    Layout,
    Reader,
    RequestContext,
    UserInteraction,
    aggregate,
    merge,
)
from gyre_core.spec import COMPARING_KINDS, ContextFeature, DiversityFeature, LoopSpec, PositionFeature, parse_loop
from gyre_features.parity import AppliedBatch, Served, check

SPEC = """
version: 1
loop: parity
events: {interactions: {click: {}}}
items: {fields: {genre: {kind: category, values: [a, b, c]}}}
features:
  - {name: popular, kind: decayed_count, scope: item, events: [click], half_lives: [1h, 1d]}
  - {name: everything, kind: decayed_count, scope: global, events: [click], half_lives: [1h]}
  - {name: taste, kind: affinity, scope: user, field: genre, events: [click], half_lives: [1d]}
  - {name: seen, kind: history, scope: user, events: [click], length: 3}
  - {name: standing, kind: rank, of: popular_1h}
"""
ITEMS = [f"i{number}" for number in range(8)]


@pytest.fixture
def spec() -> LoopSpec:
    """A loop with values of every scope."""
    return parse_loop(SPEC)


@pytest.fixture
def layout(spec: LoopSpec) -> Layout:
    """Its layout."""
    return Layout.compile(spec)


class Store:
    """The online store's part of the story: merges packed deltas and numbers its batches."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.values, self.number = layout, {}, 0
        self.batches: list[AppliedBatch] = []

    def apply(self, events: list, time: float) -> None:
        """Take in a batch."""
        self.number += 1
        for entity, delta in aggregate(self.layout, events, lambda item: self.values.get(("item", item))).items():
            packed = delta.pack(self.number)
            self.values[entity] = merge(self.layout.slots(entity[0]), self.values.get(entity), packed)
        self.batches.append(AppliedBatch(0, self.number, time, events))

    def serve(self, request_id: str, user_id: str, time: float, context: RequestContext | None = None) -> Served:
        """Read all items for a user."""
        values = [self.values.get(("item", item)) for item in ITEMS]
        user, everyone = self.values.get(("user", user_id)), self.values.get(("global", GLOBAL_ID))
        context = context or RequestContext(time)
        matrix, age = Reader(self.layout).matrix(user, everyone, values, ITEMS, context)
        batches = age.item_batches.tolist()
        return Served(request_id, user_id, ITEMS, context, matrix, age.user_batch, age.global_batch, batches)


@pytest.fixture
def story(layout: Layout) -> tuple[Store, list[Served]]:
    """A catalogue, thirty batches of clicks, and a read after each."""
    random, store, served = Random(5), Store(layout), []
    store.apply([FieldsChanged("item", item, 0.0, {"genre": "abc"[int(item[1:]) % 3]}) for item in ITEMS[:6]], 1.0)
    for step in range(30):
        now = 1000.0 + 60 * step
        clicks = [
            UserInteraction(f"u{random.randrange(5)}", random.choice(ITEMS), "click", now - random.random() * 90)
            for _ in range(random.randrange(1, 9))
        ]
        store.apply(clicks, now)
        served.append(store.serve(f"r{step}", f"u{random.randrange(6)}", now + 5))
    return store, served


def test_what_was_served_is_what_the_replay_gives(layout: Layout, story) -> None:
    """Reads made between any two batches are found to be equal, number by number."""
    store, served = story
    report = check(layout, served, store.batches)
    assert (report.impressions, report.mismatches, report.unknown) == (30, 0, 0)
    assert report.values == 30 * len(ITEMS) * len(layout.columns)


def test_a_changed_number_is_found_with_its_place(layout: Layout, story) -> None:
    """One served number that differs by a thousandth is one mismatch, with request, item and column."""
    store, served = story
    wrong = served[12].matrix.copy()
    wrong[0, layout.index["everything_1h"]] *= 1.001
    served[12] = replace(served[12], matrix=wrong)
    report = check(layout, served, store.batches)
    assert report.mismatches == 1
    (example,) = report.examples
    assert (example.request_id, example.item_id, example.column) == ("r12", ITEMS[0], "everything_1h")


def test_a_lost_event_is_found(layout: Layout, story) -> None:
    """A batch that lacks one of its events gives other numbers than those served."""
    store, served = story
    first = store.batches[1]
    store.batches[1] = replace(first, events=first.events[1:])
    assert check(layout, served, store.batches).mismatches > 0


def test_reads_of_batches_that_are_not_in_the_log_are_unknown(layout: Layout, story) -> None:
    """An impression whose batch is missing is counted as unknown, not as equal."""
    store, served = story
    report = check(layout, served, store.batches[:-5])
    assert report.unknown > 0
    assert report.impressions + report.unknown == 30
    assert report.mismatches == 0


def test_a_part_of_the_candidates_is_not_compared_among_itself(layout: Layout, story) -> None:
    """Where only a sample was logged, columns that compare candidates are left out, the others are checked."""
    store, served = story
    part = [
        replace(
            each, item_ids=ITEMS[:3], matrix=np.ascontiguousarray(each.matrix[:3]),
            item_batches=each.item_batches[:3], is_whole=False,
        )
        for each in served
    ]  # fmt: skip
    report = check(layout, part, store.batches)
    assert (report.mismatches, report.values) == (0, 30 * 3 * (len(layout.columns) - 1))


def test_the_callers_order_and_the_labels_are_replayed(spec: LoopSpec) -> None:
    """A list logged in another order is compared in the caller's; of a sample only what does not depend on the rest."""
    added = (
        PositionFeature(name="place", kind="position"),
        DiversityFeature(name="same_genre", kind="diversity", field="genre"),
        ContextFeature(name="device", kind="context", field="device", values=("phone",)),
    )
    layout = Layout.compile(spec.model_copy(update={"features": (*spec.features, *added)}))
    store = Store(layout)
    store.apply([FieldsChanged("item", item, 0.0, {"genre": "ab"[number % 2]}) for number, item in enumerate(ITEMS)], 1)
    whole = store.serve("r0", "u0", 1000.0, RequestContext(1000.0, labels={"device": "phone"}))
    order = Random(3).sample(range(len(ITEMS)), len(ITEMS))
    logged = {number: _logged(whole, order[:number]) for number in (len(ITEMS), 3)}
    unordered = replace(whole, context=replace(whole.context, positions=None))
    served = [logged[len(ITEMS)], replace(logged[3], is_whole=False), unordered]
    report = check(layout, served, store.batches)
    columns, comparing = len(layout.columns), sum(each.kind in COMPARING_KINDS for each in layout.described)
    assert report.mismatches == 0
    assert report.values == len(ITEMS) * columns + 3 * (columns - comparing) + len(ITEMS) * (columns - 2)
    shuffled = replace(logged[len(ITEMS)], context=replace(whole.context, positions=range(len(ITEMS))))
    found = check(layout, [shuffled], store.batches)
    assert {each.column for each in found.examples} == {"place", "same_genre"}


def _logged(served: Served, rows: list[int]) -> Served:
    """What an impression holds of a read: these rows, with their places."""
    return replace(
        served,
        item_ids=[served.item_ids[row] for row in rows],
        context=replace(served.context, positions=rows),
        matrix=served.matrix[rows],
        item_batches=[served.item_batches[row] for row in rows],
    )
