"""Aggregates by category and windows: what they compute, that order and batching do not matter, and what is refused."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from gyre_core.features import (
    GLOBAL_ID,
    EntityId,
    Event,
    FieldsChanged,
    Impression,
    Interaction,
    Layout,
    Reader,
    Replay,
    RequestContext,
    State,
    aggregate,
    items_needed,
    merge,
)
from gyre_core.spec import SpecError, load_loop, parse_loop
from hypothesis import given, settings
from hypothesis import strategies as st

PATH = Path(__file__).parent / "data" / "algebra.yaml"
TEXT = PATH.read_text()
DAY = 86_400.0
START = 1_365_000_000.0
ITEMS = [f"i{number}" for number in range(4)]
CATALOGUE = [
    FieldsChanged("item", "i0", START, {"genres": ["Sci-Fi"], "language": "en"}),
    FieldsChanged("item", "i1", START, {"genres": ["Drama"], "language": "fr"}),
    FieldsChanged("item", "i2", START, {"genres": ["Action", "Sci-Fi"]}),
]


@pytest.fixture(scope="module")
def layout() -> Layout:
    """The layout of the loop with every aggregate by category and every window."""
    return Layout.compile(load_loop(PATH))


class Store:
    """An online store in a dictionary: aggregates batches and merges their bytes, as the stream processor does."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.values: dict[EntityId, bytes] = {}

    def apply(self, events: Sequence[Event], batch: int = 1) -> None:
        """Aggregate and merge one batch."""
        deltas = aggregate(self.layout, events, lambda item_id: self.values.get(("item", item_id)))
        for key, delta in deltas.items():
            self.values[key] = merge(self.layout.slots(key[0]), self.values.get(key), delta.pack(batch))

    def row(self, user: str, time: float) -> dict[str, np.ndarray]:
        """The columns of a read of all items, by name."""
        item_values = [self.values.get(("item", item)) for item in ITEMS]
        everyone = self.values.get(("global", GLOBAL_ID))
        own = self.values.get(("user", user))
        matrix, _ = Reader(self.layout).matrix(own, everyone, item_values, ITEMS, RequestContext(time))
        return dict(zip(self.layout.columns, matrix.T, strict=True))


def read(layout: Layout, events: Sequence[Event], *, time: float = START, user: str = "ann") -> dict[str, np.ndarray]:
    """The columns of all items after the catalogue and the events."""
    store = Store(layout)
    store.apply([*CATALOGUE, *events])
    return store.row(user, time)


def rating(user: str, item: str, *, time: float = START, value: float | None = 9.0) -> Interaction:
    """A rating."""
    return Interaction(user, item, "rating", time, value)


def click(user: str, item: str, *, time: float = START) -> Interaction:
    """A click."""
    return Interaction(user, item, "click", time)


def test_a_count_by_category_is_the_mean_over_the_candidates_categories(layout: Layout) -> None:
    """One Sci-Fi event counts 1 for Sci-Fi, a half for a Sci-Fi action film, and decays; no category gives 0."""
    row = read(layout, [rating("ann", "i0")])
    np.testing.assert_allclose(row["user_genre_1d"], [1, 0, 0.5, 0])
    later = read(layout, [rating("ann", "i0"), rating("bob", "i1")], time=START + DAY)
    np.testing.assert_allclose(later["user_genre_1d"], [0.5, 0, 0.25, 0], rtol=1e-6)


def test_the_click_rate_of_the_genre_counts_all_users_and_shown_items(layout: Layout) -> None:
    """Each shown item counts for each of its genres, each click likewise; an item without a genre has the prior."""
    row = read(layout, [Impression("bob", ["i0", "i1", "i2"], START), click("bob", "i0")])
    sci_fi, drama, action = 2 / 12, 1 / 11, 1 / 11
    np.testing.assert_allclose(row["genre_ctr_7d"], [sci_fi, drama, (sci_fi + action) / 2, 0.1], rtol=1e-6)
    np.testing.assert_allclose(row["genre_rank"], [1, 0, 2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(row["user_ctr_7d"], 0.1, rtol=1e-6)
    own = read(layout, [Impression("bob", ["i0", "i1", "i2"], START), click("bob", "i0")], user="bob")
    np.testing.assert_allclose(own["user_ctr_7d"], [2 / 11, 1 / 11, 0.1, 0.1], rtol=1e-6)


def test_a_mean_by_category_is_smoothed_for_each(layout: Layout) -> None:
    """A single 9 with prior 7 of weight 5 gives 44 / 6 for its genre, the prior for others; no value counts nothing."""
    row = read(layout, [rating("ann", "i0"), rating("ann", "i1", value=None)])
    np.testing.assert_allclose(row["genre_score_30d"], [44 / 6, 7, (44 / 6 + 7) / 2, 7], rtol=1e-6)


def test_features_of_the_same_events_share_their_slots(layout: Layout) -> None:
    """A count by genres and an affinity to genres over the same events and half-life are stored once."""
    counted = [slot for slot in layout.slots("user").sums if slot.measure == "affinity" and slot.field == "genres"]
    assert len(counted) == 4 * len({slot.half_life_s for slot in counted}) == 8


def test_items_needed_include_the_shown(layout: Layout) -> None:
    """Where impressions count by category, the shown items are looked up, each once, and items without id never."""
    events = [click("ann", "i3"), click("ann", ""), Impression("bob", ["i0", "i3"], START)]
    assert items_needed(layout, events) == ["i3", "i0"]


def test_packing_is_lossless(layout: Layout) -> None:
    """A value unpacked and packed again is the same bytes, and the empty value is neutral."""
    store = Store(layout)
    store.apply([*CATALOGUE, rating("ann", "i0"), click("ann", "i1"), Impression("ann", ITEMS, START)], batch=7)
    for (kind, _), value in store.values.items():
        entity = layout.slots(kind)
        assert State.unpack(entity, value).pack() == value
        assert merge(entity, value, entity.empty) == value == merge(entity, entity.empty, value)
        assert len(value) == entity.fixed_bytes


def test_layouts_without_the_new_kinds_keep_their_hash() -> None:
    """What the online store of a running loop holds stays readable: these hashes were there before `by` was."""
    known = {"full.yaml": "50006627296d72da", "minimal.yaml": "82647ea41314cd4b"}
    assert {name: Layout.compile(load_loop(PATH.parent / name)).hash for name in known} == known


times = st.integers(0, 40 * 3600).map(lambda seconds: START + 20 * DAY + seconds)
users, items = st.sampled_from(["ann", "bob"]), st.sampled_from(ITEMS)
streams = st.lists(
    st.builds(rating, users, items, time=times, value=st.floats(0, 10, width=32))
    | st.builds(click, users, items, time=times)
    | st.builds(Impression, users, st.lists(items, min_size=1, max_size=3), times),
    min_size=1,
    max_size=25,
)


@settings(max_examples=50, deadline=None)
@given(events=streams, data=st.data())
def test_order_and_batching_do_not_matter(layout: Layout, events: list[Event], data: st.DataObject) -> None:
    """Whatever the order and the batch boundaries, every feature is equal to 1e-5 relative, and to the replay's."""
    stores, sizes = [Store(layout), Store(layout)], st.integers(1, 9)
    for store, order in zip(stores, (events, data.draw(st.permutations(events))), strict=True):
        store.apply(CATALOGUE)
        size = data.draw(sizes)
        for number, first in enumerate(range(0, len(order), size)):
            store.apply(order[first : first + size], batch=number)
    replay = Replay(layout)
    replay.apply([*CATALOGUE, *events])
    time = START + 21 * DAY + 9 * 3600
    matrix, _ = replay.matrix("ann", ITEMS, RequestContext(time))
    first, second = (store.row("ann", time) for store in stores)
    for column in layout.columns:
        if column != "genre_rank":
            np.testing.assert_allclose(first[column], second[column], rtol=1e-5, atol=1e-30, err_msg=column)
            np.testing.assert_allclose(first[column], matrix[:, layout.index[column]], rtol=1e-5, err_msg=column)


@pytest.mark.parametrize(
    ("old", "new", "field", "rule"),
    [
        ("scope: user, by: genres", "scope: item, by: genres", "features[0].by", "use user or global"),
        ("scope: user, by: genres", "scope: user, by: genre", "features[0].by", "declared item field: genres"),
        ("scope: user, by: genres", "scope: user, by: title", "features[0].by", "of kind category or categories"),
        ("values: [Action, Comedy, Drama, Sci-Fi]", "values: []", "features[0].by", "a field that lists its values"),
        ("kind: affinity, scope: user", "kind: affinity, by: genres", "features[1].by", "is not a known field here"),
    ],
)
def test_what_cannot_be_computed_is_refused(old: str, new: str, field: str, rule: str) -> None:
    """A reference to the wrong thing is an issue at its own line that says what would be right."""
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    with pytest.raises(SpecError) as caught:
        parse_loop(text, source="test")
    found = [issue for issue in caught.value.issues if issue.field == field]
    assert found, caught.value.issues
    assert rule in found[0].rule
    assert field.rpartition(".")[2].partition("[")[0] in text.splitlines()[found[0].line - 1]
