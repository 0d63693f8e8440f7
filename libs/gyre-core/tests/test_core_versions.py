"""Item fields as of an event's time: whatever order events and fields come in, within the bounds, features agree."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from gyre_core.features import (
    Contribution,
    ContributionBuffers,
    Event,
    FieldsChanged,
    Impression,
    Layout,
    Replay,
    RequestContext,
    UserInteraction,
    with_version,
)
from gyre_core.spec import parse_loop
from hypothesis import given, settings
from hypothesis import strategies as st

START = 1_365_000_000.0
HOUR = 3600.0
SPEC = """
version: 1
loop: test
clock: replay
events:
  max_lateness: 1h
  max_field_lateness: 1h
  interactions: {click: {}, rating: {value: {min: -5, max: 5}}}
items:
  fields:
    genres: {kind: categories, values: [action, drama, comedy]}
    maker: {kind: category, buckets: 8}
features:
  - {name: taste, kind: affinity, scope: user, field: genres, events: [click], half_lives: [1d]}
  - {name: liked, kind: decayed_mean, scope: user, by: genres, events: [rating], half_lives: [7d]}
  - {name: ctr, kind: decayed_rate, scope: global, by: maker, events: [click], per: [impression], half_lives: [7d]}
  - {name: seen, kind: history, scope: user, events: [click], length: 4, field: genres}
  - {name: clicks, kind: decayed_count, scope: user, events: [click], half_lives: [1d]}
training: {label: {events: [click], attribution_window: 30m}}
"""
ITEMS = ["i0", "i1", "i2"]
USERS = ["ann", "bob"]


@pytest.fixture(scope="module")
def layout() -> Layout:
    """A layout in which every kind of fold reads fields."""
    return Layout.compile(parse_loop(SPEC, source="test"))


def click(item: str, minute: float, user: str = "ann") -> UserInteraction:
    """A click."""
    return UserInteraction(user, item, "click", START + 60 * minute)


def change(item: str, minute: float, *genres: str) -> FieldsChanged:
    """A version of an item's fields."""
    return FieldsChanged("item", item, START + 60 * minute, {"genres": genres, "maker": genres[0] if genres else ""})


def features(layout: Layout, events: Sequence[Event]) -> np.ndarray:
    """What everybody's features of all items are after events, in this order."""
    replay = Replay(layout)
    replay.apply(events)
    context = RequestContext(START + HOUR)
    return np.stack([replay.matrix(user, ITEMS, context)[0] for user in USERS])


def rings(layout: Layout, events: Sequence[Event]) -> list[tuple[float, int]]:
    """Ann's history after events."""
    replay = Replay(layout)
    replay.apply(events)
    return layout.history(replay.value("user", "ann"))


def test_an_event_takes_the_newest_version_not_newer_than_itself(layout: Layout) -> None:
    """Two versions and a click between them: it counts for the first one's genres, wherever it comes in the order."""
    versions = [change("i0", 0, "action"), change("i0", 10, "drama")]
    wanted = features(layout, [versions[0], click("i0", 5), versions[1]])
    assert wanted[0, 0, layout.index["taste_1d"]] == 0
    for order in ([*versions, click("i0", 5)], [click("i0", 5), *versions], [versions[1], click("i0", 5), versions[0]]):
        np.testing.assert_allclose(features(layout, order), wanted, rtol=1e-5, atol=1e-7)


def test_before_its_first_version_an_item_is_what_that_says(layout: Layout) -> None:
    """A catalogue is often imported after the behaviour: the oldest known version holds from the beginning."""
    early = features(layout, [click("i0", 1), change("i0", 5, "action")])
    assert early[0, 0, layout.index["taste_1d"]] == 1


def test_what_came_before_its_item_counts_at_once_where_no_fields_are_read(layout: Layout) -> None:
    """A click on an unknown item is in the history and the count; the genre follows with the item."""
    unknown = features(layout, [click("i0", 1)])
    assert unknown[0, 0, layout.index["clicks_1d"]] > 0.9
    assert len(rings(layout, [click("i0", 1)])) == 1
    assert unknown[0, 0, layout.index["taste_1d"]] == 0


def test_a_version_without_categories_takes_all_back(layout: Layout) -> None:
    """What rounding leaves of a weight that was taken back is no taste."""
    clicks = [click("i0", 10 + number / 7) for number in range(20)]
    both = [change("i0", 0, "action"), change("i0", 5)]
    found = features(layout, [both[0], *clicks, both[1]])
    np.testing.assert_array_equal(found[0, :, layout.index["taste_1d"]], 0)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_order_gives_what_the_order_of_time_gives(layout: Layout, data: st.DataObject) -> None:
    """Clicks, ratings, impressions and versions of items, some never known, in any order: the same features."""
    at = st.integers(0, 59).map(lambda minute: START + 60.0 * minute)
    item, user = st.sampled_from(ITEMS), st.sampled_from(USERS)
    genres = st.lists(st.sampled_from(["action", "drama", "comedy"]), unique=True, max_size=2)
    clicks = st.builds(UserInteraction, user, item, st.just("click"), at)
    rated = st.builds(UserInteraction, user, item, st.just("rating"), at, st.floats(-5, 5, width=32))
    shown = st.builds(Impression, user, st.lists(item, min_size=1, max_size=3), at)
    versions = st.builds(
        lambda item_id, time, held: FieldsChanged("item", item_id, time, {"genres": held, "maker": "".join(held)}),
        item, at, genres,
    )  # fmt: skip
    events = data.draw(st.lists(clicks | rated | shown | versions, max_size=25))
    shuffled = data.draw(st.permutations(events))
    # Of two versions of one time the later in the log stands, so these keep the order that they came in.
    ordered = sorted(shuffled, key=lambda event: (event.time, not isinstance(event, FieldsChanged)))
    np.testing.assert_allclose(features(layout, shuffled), features(layout, ordered), rtol=1e-5, atol=1e-6)
    assert rings(layout, shuffled) == rings(layout, ordered)


def test_versions_go_when_no_event_may_come_that_is_so_old(layout: Layout) -> None:
    """A version stays for the lateness bound after the next one took over, one of an equal time takes its place."""
    fields = layout.item_fields
    old, new, tie = (fields.version(time, (flag, 0, 0, *[0] * 8)) for time, flag in ((0, 1), (10, 0), (10, 1)))
    assert [each.time for each in with_version((old,), new, kept_s=60)] == [0, 10]
    assert with_version((old, new), tie, kept_s=60)[1].numbers == tie.numbers
    assert with_version((old, tie), new, kept_s=60) == (old, new)
    assert [each.time for each in with_version((old, new), fields.version(71, new.numbers), kept_s=60)] == [10, 71]
    assert with_version((new,), old, kept_s=-1) == (new,)


def test_packed_folds_and_versions_come_back(layout: Layout) -> None:
    """What is remembered elsewhere is the same when it is read, names beyond ASCII and missing values included."""
    fields, draw = layout.item_fields, random.Random(3)
    contributions = [
        Contribution(
            "öl", "zoë", draw.choice(layout.events), START + n, draw.choice([float("nan"), 2.5]), n % 8, n % 2 > 0
        )
        for n in range(20)
    ]
    back = fields.unpack_contributions(b"prefix" + fields.pack_contributions(contributions), 6)
    told = [(f.item_id, f.user_id, f.type, f.time, f.given, f.mask, f.is_known) for f in back]
    assert told == [(f.item_id, f.user_id, f.type, f.time, f.given, f.mask, f.is_known) for f in contributions]
    versions = tuple(fields.version(START + n, (n % 2, 1, 0, *[0] * 8)) for n in range(3))
    assert fields.unpack(None, fields.pack(versions)) == versions


def test_what_is_remembered_is_bounded_by_age_and_count(layout: Layout) -> None:
    """A batch's folds go when an event is newer by the bound, and the oldest when there are too many batches."""

    def contribution(second: float) -> Contribution:
        return Contribution("i0", "ann", "click", START + second, float("nan"), 0, is_known=False)

    kept = ContributionBuffers(layout, max_batches=3)
    for second in range(5):
        kept.add([contribution(second)])
    assert [each.time - START for each in kept.of("i0")] == [2, 3, 4]
    kept.cut(START + layout.max_lateness_s + 3.5)
    assert [each.time - START for each in kept.of("i0")] == [4]
    kept.drop(kept.of("i0"))
    assert kept.of("i0") == []
