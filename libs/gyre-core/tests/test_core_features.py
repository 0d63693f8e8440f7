"""The feature algebra: what each kind computes, and that order and batching do not matter."""

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from gyre_core.features import (
    GLOBAL_ID,
    EntityId,
    Event,
    FieldsChanged,
    Impression,
    Layout,
    Reader,
    Replay,
    RequestContext,
    State,
    UserInteraction,
    aggregate,
    batch_of,
    item_hash,
    items_needed,
    merge,
)
from gyre_core.float32 import FLOAT32_MAX
from gyre_core.spec import LoopSpec
from hypothesis import given, settings
from hypothesis import strategies as st

DAY = 86_400.0
START = 1_365_000_000.0
ITEMS = [f"i{number}" for number in range(4)]
USERS = ["ann", "bob"]
CATALOGUE = [
    FieldsChanged("item", "i0", START, {"title": "Alien", "year": 1979.0, "genres": ["Sci-Fi"], "language": "en"}),
    FieldsChanged("item", "i1", START, {"title": "Jour", "year": 1939.0, "genres": ["Drama"], "language": "fr"}),
    FieldsChanged("item", "i2", START, {"genres": ["Action", "Sci-Fi"], "colour": True, "released": START - 10 * DAY}),
]


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

    def row(self, user: str, items: Sequence[str], context: RequestContext) -> dict[str, np.ndarray]:
        """The columns of a read, by name."""
        item_values = [self.values.get(("item", item)) for item in items]
        everyone = self.values.get(("global", GLOBAL_ID))
        matrix, _ = Reader(self.layout).matrix(self.values.get(("user", user)), everyone, item_values, items, context)
        return dict(zip(self.layout.columns, matrix.T, strict=True))


@pytest.fixture(scope="module")
def layout(full_loop: LoopSpec) -> Layout:
    """The layout of the full sample."""
    return Layout.compile(full_loop)


def rating(user: str, item: str, *, days: float, value: float = 8.0) -> UserInteraction:
    """A rating so many days after the start."""
    return UserInteraction(user, item, "rating", START + days * DAY, value)


def read(layout: Layout, events: Iterable[Event], *, days: float, user: str = "ann") -> dict[str, np.ndarray]:
    """The columns of all items after the events."""
    store = Store(layout)
    store.apply([*CATALOGUE, *events])
    return store.row(user, ITEMS, RequestContext(START + days * DAY))


def test_fields_become_columns(layout: Layout) -> None:
    """Numbers, text lengths, categories and booleans stand in their columns, defaults where nothing is known."""
    row = read(layout, [], days=1)
    assert row["item_year"].tolist() == [1979, 1939, 1990, 1990]
    assert row["item_title"].tolist() == [5, 4, 0, 0]
    assert row["item_genres_sci_fi"].tolist() == [1, 0, 1, 0]
    assert row["item_genres_action"].tolist() == [0, 0, 1, 0]
    assert row["item_language_fr"].tolist() == [0, 1, 0, 0]
    assert row["item_colour"].tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(row["item_released"], [365, 365, 11, 365], rtol=1e-6)


def test_counts_halve_with_each_half_life(layout: Layout) -> None:
    """One event counts 1 at once, a half after one half-life, a quarter after two."""
    row = read(layout, [rating("ann", "i0", days=0), rating("bob", "i0", days=7)], days=14)
    np.testing.assert_allclose(row["item_rate_7d"][:2], [0.25 + 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(row["all_ratings_1d"], 2**-14 + 2**-7, rtol=1e-6)
    np.testing.assert_allclose(row["user_count_30d"], 2 ** (-14 / 30), rtol=1e-6)


def test_means_are_smoothed_by_their_prior(layout: Layout) -> None:
    """With prior 7 of weight 5, a single fresh 10 gives 45 / 6, and no rating gives the prior."""
    row = read(layout, [rating("ann", "i0", days=0, value=10)], days=0)
    np.testing.assert_allclose(row["item_score_30d"][:2], [45 / 6, 7], rtol=1e-6)


def test_rates_count_shown_items(layout: Layout) -> None:
    """A click on one of two shown items raises its rate and lowers the other's."""
    shown = Impression("ann", ["i0", "i1"], START)
    row = read(layout, [shown, UserInteraction("ann", "i0", "click", START)], days=0)
    np.testing.assert_allclose(row["item_ctr_7d"][:3], [1.4 / 21, 0.4 / 21, 0.02], rtol=1e-6)


def test_affinity_is_the_share_of_the_users_categories(layout: Layout) -> None:
    """Someone who rated one Sci-Fi and one Drama likes each half, and a Sci-Fi action film as much as its Sci-Fi."""
    row = read(layout, [rating("ann", "i0", days=0), rating("ann", "i1", days=0)], days=3)
    np.testing.assert_allclose(row["genre_affinity_30d"], [0.5, 0.5, 0.5, 0], rtol=1e-6)
    assert read(layout, [], days=3)["genre_affinity_30d"].tolist() == [0, 0, 0, 0]


def test_ages_run_from_first_and_last_events(layout: Layout) -> None:
    """An item's age runs from its first rating, a user's recency from the last, and absence gives the default."""
    row = read(layout, [rating("ann", "i0", days=4), rating("ann", "i0", days=1)], days=6)
    np.testing.assert_allclose(row["item_age"][:2], [5, 0], rtol=1e-6)
    np.testing.assert_allclose(row["user_recency"], 2, rtol=1e-6)
    np.testing.assert_allclose(read(layout, [], days=6)["user_recency"], 30)


def test_history_knows_the_seen_and_the_similar(layout: Layout) -> None:
    """A rated item is seen, and overlap is the share of remembered items with a category in common."""
    row = read(layout, [rating("ann", "i0", days=0), rating("ann", "i1", days=1)], days=2)
    assert row["last_items_seen"].tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(row["last_items_overlap"], [0.5, 0.5, 0.5, 0])


def test_history_keeps_the_newest(layout: Layout) -> None:
    """Only the last five are remembered, newest first, even when an old one arrives late."""
    store = Store(layout)
    store.apply([rating("ann", f"x{number}", days=number) for number in (6, 2, 3, 4, 5, 1)])
    found = layout.history(store.values["user", "ann"])
    assert found == [(START + number * DAY, item_hash(f"x{number}")) for number in (6, 5, 4, 3, 2)]
    assert layout.history(None) == []


def test_relative_features_compare_the_candidates(layout: Layout) -> None:
    """Ranks run from 0 to 1 with ties averaged, z-scores have mean 0 and deviation 1."""
    row = read(layout, [rating("bob", "i0", days=0), rating("bob", "i0", days=0), rating("ann", "i1", days=0)], days=0)
    np.testing.assert_allclose(row["rank_7d"], [1, 2 / 3, 1 / 6, 1 / 6], rtol=1e-6)
    np.testing.assert_allclose([row["z_7d"].mean(), row["z_7d"].std()], [0, 1], atol=1e-6)


def test_context_comes_with_the_request(layout: Layout) -> None:
    """Hour and weekday are those of the request in UTC, other numbers the caller's or their default."""
    context = RequestContext(1_365_514_200.0, {"screen_width": 390.0})
    row = Store(layout).row("ann", ["i0"], context)
    assert (row["hour"][0], row["weekday"][0], row["screen"][0]) == (13, 1, 390)
    assert Store(layout).row("ann", ["i0"], RequestContext(0.0))["screen"][0] == 1080


@pytest.mark.parametrize("value", [1e39, -1e39, float("inf"), float("nan")])
def test_a_context_number_that_no_column_holds_is_the_default(layout: Layout, value: float) -> None:
    """What is not finite in float32 reaches no model; the greatest that is does."""
    read_as = [
        Store(layout).row("ann", ["i0"], RequestContext(0.0, {"screen_width": each}))["screen"][0]
        for each in (value, FLOAT32_MAX, -FLOAT32_MAX)
    ]
    assert read_as == [1080, np.float32(FLOAT32_MAX), np.float32(-FLOAT32_MAX)]


def test_a_late_request_sees_no_growth(layout: Layout) -> None:
    """A value newer than the request is read as it stands: a decay factor never exceeds one."""
    row = read(layout, [rating("ann", "i0", days=10)], days=3)
    assert row["item_rate_6h"][0] == 1
    assert row["user_recency"][0] == 0


def test_age_of_a_read_names_batches_and_unknown_items(layout: Layout) -> None:
    """The read carries each value's batch, -1 for unknown entities, and the user's newest event."""
    store = Store(layout)
    store.apply([*CATALOGUE, rating("ann", "i0", days=1)], batch=41)
    store.apply([rating("bob", "i0", days=2)], batch=42)
    values = [store.values.get(("item", item)) for item in ITEMS]
    context = RequestContext(START + 3 * DAY)
    _, age = Reader(layout).matrix(store.values["user", "ann"], None, values, ITEMS, context)
    assert age.item_batches.tolist() == [42, 41, 41, -1]
    assert (age.user_batch, age.global_batch, age.missing_items) == (41, -1, 1)
    assert age.user_age_s(context.time) == 2 * DAY
    assert age.newest_event_time == START + 2 * DAY


def test_unknown_user_has_no_age(layout: Layout) -> None:
    """Without any value the read is all defaults and its ages are negative."""
    matrix, age = Reader(layout).matrix(None, None, [None], ["i0"], RequestContext(START))
    assert age.user_age_s(START) == -1
    assert np.isfinite(matrix).all()


def test_no_candidates_give_an_empty_matrix(layout: Layout) -> None:
    """Nothing asked is nothing answered, without an error."""
    matrix, _ = Reader(layout).matrix(None, None, [], [], RequestContext(START))
    assert matrix.shape == (0, len(layout.columns))


def test_a_value_that_does_not_fit_is_refused(layout: Layout) -> None:
    """Cut or foreign bytes raise instead of being read as features."""
    entity = layout.slots("item")
    context = RequestContext(START)
    with pytest.raises(ValueError, match="item values"):
        Reader(layout).matrix(None, None, [entity.empty[:-1]], ["i0"], context)
    with pytest.raises(ValueError, match="cut short"):
        Reader(layout).matrix(layout.slots("user").empty[:-8], None, [], [], context)
    with pytest.raises(ValueError, match="expected at least"):
        State.unpack(entity, b"")
    with pytest.raises(ValueError, match="1 values for 2 items"):
        Reader(layout).matrix(None, None, [None], ["i0", "i1"], context)


def test_a_field_of_the_wrong_kind_is_refused(layout: Layout) -> None:
    """A word where a number is declared raises with the field's name, so that the event can be dead-lettered."""
    wrong = FieldsChanged("item", "i0", START, {"year": "soon"})
    with pytest.raises(ValueError, match="year = 'soon'"):
        aggregate(layout, [wrong], lambda _: None)


def test_items_needed_are_those_whose_categories_count(layout: Layout) -> None:
    """Only ratings feed affinity and history, so only their items are looked up."""
    events = [rating("ann", "i0", days=0), UserInteraction("ann", "i1", "click", START), rating("bob", "i0", days=1)]
    assert items_needed(layout, events) == ["i0"]


def test_layout_hash_follows_the_meaning(full_loop: LoopSpec, layout: Layout) -> None:
    """The hash moves with definitions, and neither with lifetimes nor with what is not a feature."""
    features = list(full_loop.features)
    kept = full_loop.model_copy(update={"description": "other"})
    moved = full_loop.model_copy(update={"features": tuple(features[:-1])})
    longer = features[6].model_copy(update={"ttl": None})
    same = full_loop.model_copy(update={"features": (*features[:6], longer, *features[7:])})
    assert Layout.compile(kept).hash == layout.hash == Layout.compile(same).hash
    assert Layout.compile(moved).hash != layout.hash


def test_values_expire_only_where_nothing_is_kept_for_ever(layout: Layout, minimal_loop: LoopSpec) -> None:
    """Behaviour alone expires after ten half-lives; catalogue fields are never sent again and stay."""
    assert layout.ttl_s("item") is None
    assert layout.ttl_s("global") == 10 * DAY
    assert Layout.compile(minimal_loop).ttl_s("user") == 70 * DAY


def test_packing_is_lossless(layout: Layout) -> None:
    """A value unpacked and packed again is the same bytes, and the empty value is neutral."""
    store = Store(layout)
    store.apply([*CATALOGUE, rating("ann", "i0", days=1), Impression("ann", ITEMS, START)], batch=7)
    for (kind, _), value in store.values.items():
        entity = layout.slots(kind)
        assert State.unpack(entity, value).pack() == value
        assert merge(entity, value, entity.empty) == value
        assert merge(entity, entity.empty, value) == value
        assert len(value) >= entity.fixed_bytes
        assert batch_of(value) == 7


interactions = st.builds(
    rating,
    st.sampled_from(USERS),
    st.sampled_from(ITEMS),
    days=st.integers(0, 90_000).map(lambda seconds: 20 + seconds / DAY),
    value=st.floats(0, 10, width=32),
)
impressions = st.builds(
    Impression,
    st.sampled_from(USERS),
    st.lists(st.sampled_from(ITEMS), min_size=1, max_size=3),
    st.integers(0, 90_000).map(lambda seconds: START + 20 * DAY + seconds),
)
streams = st.lists(interactions | impressions, min_size=1, max_size=25)


def cut(events: list[Event], sizes: list[int]) -> list[list[Event]]:
    """The events in batches of these sizes, over and over."""
    batches, rest = [], list(events)
    while rest:
        size = sizes[len(batches) % len(sizes)]
        batches.append(rest[:size])
        rest = rest[size:]
    return batches


@settings(max_examples=60, deadline=None)
@given(events=streams, data=st.data())
def test_order_and_batching_do_not_matter(layout: Layout, events: list[Event], data: st.DataObject) -> None:
    """Whatever the order and the batch boundaries, every feature is equal to 1e-5 relative."""
    sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)
    stores = [Store(layout), Store(layout)]
    for store, order in zip(stores, (events, data.draw(st.permutations(events))), strict=True):
        store.apply(CATALOGUE)
        for number, batch in enumerate(cut(order, data.draw(sizes))):
            store.apply(batch, batch=number)
    context = RequestContext(START + 22 * DAY)
    for user in USERS:
        first, second = (store.row(user, ITEMS, context) for store in stores)
        for column in layout.columns:
            if column not in ("rank_7d", "z_7d"):
                np.testing.assert_allclose(first[column], second[column], rtol=1e-5, atol=1e-30, err_msg=column)


@settings(max_examples=40, deadline=None)
@given(events=streams)
def test_replay_is_the_stream(layout: Layout, events: list[Event]) -> None:
    """The offline replay gives what the online store would have given, to 1e-6."""
    store, replay = Store(layout), Replay(layout)
    store.apply(CATALOGUE)
    replay.apply(CATALOGUE)
    store.apply(events)
    replay.apply(events)
    context = RequestContext(START + 22 * DAY)
    matrix, _ = replay.matrix("ann", ITEMS, context)
    for column, values in store.row("ann", ITEMS, context).items():
        if column not in ("rank_7d", "z_7d"):
            np.testing.assert_allclose(matrix[:, layout.index[column]], values, rtol=1e-6, err_msg=column)


@settings(max_examples=40, deadline=None)
@given(
    first=st.tuples(st.integers(0, 3), st.sampled_from(["en", "fr"]), st.integers(1900, 2020)),
    second=st.tuples(st.integers(0, 3), st.sampled_from(["en", "fr"]), st.integers(1900, 2020)),
)
def test_the_newest_fields_stand_and_of_one_time_the_later_ones(
    layout: Layout, first: tuple[int, str, int], second: tuple[int, str, int]
) -> None:
    """Catalogue changes commute, but at the same time, where the later one corrects; they are never mixed."""
    changes = [
        FieldsChanged("item", "i0", START + time, {"language": language, "year": float(year)})
        for time, language, year in (first, second)
    ]
    for ordered in (changes, changes[::-1]):
        apart, together = Store(layout), Store(layout)
        for change in ordered:
            apart.apply([change])
        together.apply(ordered)
        expected = ordered[0] if ordered[0].time > ordered[1].time else ordered[1]
        for store in (apart, together):
            row = store.row("ann", ["i0"], RequestContext(START + DAY))
            stands = ("fr" if row["item_language_fr"][0] else "en", row["item_year"][0])
            assert stands == (expected.fields["language"], expected.fields["year"])


def test_a_change_of_the_catalogue_does_not_age_behaviour(layout: Layout) -> None:
    """Fields sent much later than the events leave the counts as they are."""
    store = Store(layout)
    store.apply([rating("ann", "i0", days=0)])
    store.apply([FieldsChanged("item", "i0", START + 4000 * DAY, {"year": 1979.0})])
    assert store.row("ann", ["i0"], RequestContext(START))["item_rate_6h"][0] == 1


def test_a_loop_without_global_features_reads_the_same_way(minimal_loop: LoopSpec) -> None:
    """A kind of entity that stores nothing costs nothing and breaks nothing."""
    layout = Layout.compile(minimal_loop)
    store = Store(layout)
    store.apply(
        [FieldsChanged("item", "i0", START, {"category": "hats"}), UserInteraction("ann", "i0", "click", START)]
    )
    row = store.row("ann", ["i0", "i1"], RequestContext(START + 7 * DAY))
    np.testing.assert_allclose(row["item_clicks_7d"], [0.5, 0])
    assert row["item_category_hats"].tolist() == [1, 0]
    assert row["affinity_7d"].tolist() == [1, 0]
    assert not layout.slots("global").is_stored
    assert ("global", GLOBAL_ID) not in store.values
