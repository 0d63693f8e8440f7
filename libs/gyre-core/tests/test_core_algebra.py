"""Aggregates by category and windows: what they compute, that order and batching do not matter, and what is refused."""

import math
import struct
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
    Layout,
    Reader,
    Replay,
    RequestContext,
    State,
    UserInteraction,
    aggregate,
    item_hash,
    items_needed,
    merge,
)
from gyre_core.keys import STORE_FORMAT
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


def rating(user: str, item: str, *, time: float = START, value: float | None = 9.0) -> UserInteraction:
    """A rating."""
    return UserInteraction(user, item, "rating", time, value)


def click(user: str, item: str, *, time: float = START) -> UserInteraction:
    """A click."""
    return UserInteraction(user, item, "click", time)


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


HOUR = 3600.0
WHOLE = 380_000 * HOUR
"""A whole hour."""


def test_a_sliding_window_ends_with_the_request(layout: Layout) -> None:
    """An event counts fully for an hour, by the share of its ten minutes that is left, and then no longer."""
    store = Store(layout)
    store.apply([click("ann", "i0", time=WHOLE), click("ann", "i0", time=WHOLE + 1800)])
    found = [store.row("ann", WHOLE + 60 * minutes)["item_clicks_1h"][0] for minutes in (0, 30, 59, 65, 70, 95, 100)]
    np.testing.assert_allclose(found, [1, 2, 2, 1.5, 1, 0.5, 0], rtol=1e-6)
    assert store.row("ann", WHOLE + 5 * HOUR)["item_clicks_6h"].tolist() == [2, 0, 0, 0]


def test_a_tumbling_window_is_the_last_complete_one(layout: Layout) -> None:
    """Events count throughout the hour after their own, and neither before nor after it."""
    store = Store(layout)
    store.apply([click("ann", "i0", time=WHOLE + 1), rating("ann", "i1", time=WHOLE + HOUR - 1)])
    found = [store.row("ann", WHOLE + HOUR * hours)["hourly_1h"][0] for hours in (0.9, 1, 1.9, 2, 30)]
    assert found == [0, 2, 2, 0, 0]


def test_a_windowed_rate_is_smoothed_by_its_prior(layout: Layout) -> None:
    """One click on one of two shown items gives 2 / 11 and 1 / 11, and what was not shown has the prior."""
    row = read(layout, [Impression("ann", ["i0", "i1"], START), click("bob", "i0")])
    np.testing.assert_allclose(row["item_rate_6h"], [2 / 11, 1 / 11, 0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(row["all_rate_1h"], 1 / 3, rtol=1e-6)


def test_what_left_the_window_is_forgotten(layout: Layout) -> None:
    """An event older than the buckets that are kept changes nothing, late or in order, and a gap empties the ring."""
    new, old = click("ann", "i0", time=WHOLE + 100 * HOUR), click("ann", "i0", time=WHOLE)
    assert read(layout, [new, old], time=new.time)["item_clicks_6h"][0] == 1
    in_order, late = Store(layout), Store(layout)
    for store, events in ((in_order, [old, new]), (late, [new, old])):
        for event in events:
            store.apply([event])
    assert in_order.values["item", "i0"][16:] == late.values["item", "i0"][16:]
    assert in_order.row("ann", old.time)["item_clicks_6h"][0] == 0


def test_a_request_before_the_newest_event_counts_to_its_own_time(layout: Layout) -> None:
    """Parts after the request do not count, even where the store knows them already."""
    events = [click("ann", "i0", time=WHOLE), click("ann", "i0", time=WHOLE + 4000)]
    assert read(layout, events, time=WHOLE + 1200)["item_clicks_6h"][0] == 1


@settings(max_examples=60, deadline=None)
@given(ages=st.lists(st.floats(0, 9 * HOUR), max_size=40), data=st.data())
def test_a_sliding_window_is_the_count_to_within_one_part(
    layout: Layout, ages: list[float], data: st.DataObject
) -> None:
    """The count lies between that of the whole parts inside the window and that of all parts that touch it."""
    now, part = WHOLE + data.draw(st.floats(0, HOUR)), HOUR
    found = read(layout, [click("ann", "i0", time=now - age) for age in ages], time=now)["item_clicks_6h"][0]
    assert sum(age <= 6 * HOUR - part for age in ages) <= found <= sum(age <= 6 * HOUR + part for age in ages)


def test_a_value_that_the_store_could_not_merge_is_refused() -> None:
    """More numbers than a script of Redis can hold are refused before they are deployed, with what to use less of."""
    many = ", ".join(f"c{number}" for number in range(250))
    lives = ", ".join(f"{number}d" for number in range(1, 16))
    text = TEXT.replace("Action, Comedy, Drama, Sci-Fi", many).replace("half_lives: [7d]", f"half_lives: [{lives}]")
    with pytest.raises(SpecError) as caught:
        parse_loop(text, source="test")
    found = {issue.field: issue.rule for issue in caught.value.issues}
    assert "needs 7500 numbers in a value of scope global" in found["features[2].name"]
    assert "fewer half_lives, windows, buckets or categories" in found["features[2].name"]


def test_windows_expire_when_they_are_empty(layout: Layout) -> None:
    """A user's value outlives its longest half-life tenfold, everyone's likewise; two windows are shorter."""
    assert layout.ttl_s("user") == 300 * DAY
    only = TEXT.replace(
        "scope: user, events: [click, rating], windows: [1h, 1d]", "scope: user, events: [click], windows: [1d]"
    )
    features = [line for line in only.splitlines() if line.startswith("  - {name: hourly")]
    head, _, rest = only.partition("features:")
    text = f"{head}features:\n{features[0]}\n{rest[rest.index('training:') :]}"
    assert Layout.compile(parse_loop(text, source="test")).ttl_s("user") == 2 * DAY


def test_an_indexed_category_is_one_column(layout: Layout) -> None:
    """The place in the declared list from 1 on, and 0 where there is no value."""
    row = read(layout, [])
    assert row["language"].tolist() == [1, 2, 0, 0]


def test_any_value_of_a_hashed_category_has_its_bucket(layout: Layout) -> None:
    """A value that nobody listed stands in one of the buckets, always the same, and events are kept apart by it."""
    made = [FieldsChanged("item", item, START + 1, {"maker": maker}) for item, maker in zip(ITEMS, "acmf", strict=True)]
    row = read(layout, [*made, *[click("ann", "i0", time=START + 2)] * 2], time=START + 2)
    buckets = np.stack([row[f"maker_{number}"] for number in range(8)], axis=1)
    of = [item_hash(maker) % 8 for maker in "acmf"]
    assert len(set(of)) > 1
    assert buckets.tolist() == [[float(number == each) for number in range(8)] for each in of]
    np.testing.assert_allclose(row["maker_clicks_7d"], [2.0 * (each == of[0]) for each in of])


@pytest.mark.parametrize(
    ("released", "parts"),
    [
        ("1969-07-20T20:17:40+00:00", (1969, 7, 6, 20)),
        ("2024-02-29T00:00:00+00:00", (2024, 2, 3, 0)),
        ("2023-12-31T23:59:59+00:00", (2023, 12, 6, 23)),
        ("2024-01-01T00:30:00+01:00", (2023, 12, 6, 23)),
    ],
)
def test_a_time_has_parts(layout: Layout, released: str, parts: tuple[int, ...]) -> None:
    """Year, month, weekday from Monday as 0, and hour, all in UTC; -1 while the time is unknown."""
    row = read(layout, [FieldsChanged("item", "i0", START + 1, {"released": released})])
    names = ("released_year", "released_month", "released_weekday", "released_hour")
    assert tuple(row[name][0] for name in names) == parts
    assert {row[name][1] for name in names} == {-1}


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
        assert entity.fixed_bytes % 8 == 0


SMALL = """
version: 1
loop: small
events: {interactions: {click: {value: {min: 0, max: 10}}}}
items: {fields: {price: {kind: number}}}
features:
  - {name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [1h, 1d]}
  - {name: recent, kind: windowed_count, scope: item, events: [click], windows: [1h], mode: tumbling}
  - {name: price, kind: field, field: price}
  - {name: seen, kind: history, scope: user, events: [click], length: 2}
"""


def test_values_are_packed_in_the_stores_format() -> None:
    """Byte by byte what format 2 is: who changes it gives the store another format, so that no old value is misread."""
    layout = Layout.compile(parse_loop(SMALL, source="test"))
    events = [FieldsChanged("item", "i", 5.0, {"price": 1.5}), UserInteraction("u", "i", "click", 7200.0, 1.0)]
    found = {kind: value.pack(3) for (kind, _), value in aggregate(layout, events, lambda _: None).items()}
    item = struct.pack("<dQ" + "dd" + "dd" + "dd" + "f4x", 7200, 3, 2, 5, 1, 1, 1, 0, 1.5)
    user = struct.pack("<dQ" + "Q" + "dQ", 7200, 3, 1, 7200, item_hash("i"))
    assert (STORE_FORMAT, found) == (2, {"item": item, "user": user})


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
        (
            "windows: [1h, 6h], buckets: 6",
            "windows: [1h, 6h], buckets: 0",
            "features[5].buckets",
            "greater than or equal",
        ),
        ("windows: [1h, 6h]", "windows: [1h, 6x]", "features[5].windows[1]", "must be a duration"),
        ("windows: [1h, 6h]", "windows: []", "features[5].windows", "at least 1 item"),
        ("mode: tumbling", "mode: hopping", "features[6].mode", "must be 'sliding' or 'tumbling'"),
        ("mode: tumbling", "mode: tumbling, buckets: 3", "features[6]", "only with `mode: sliding`"),
        (
            "events: [click, rating], windows",
            "events: [buy], windows",
            "features[6].events[0]",
            "rating, click, impression",
        ),
        ("of: genre_ctr_7d", "of: genre_ctr", "features[13].of", "must be a column of an earlier feature"),
        ("name: user_ctr", "name: item_clicks", "features[5].name", "is the name of an earlier feature"),
        ("values: [en, fr]", "values: [en, fr], buckets: 3", "items.fields.language", "either `values` or `buckets`"),
        ("buckets: 8", "buckets: 1", "items.fields.maker.buckets", "greater than or equal to 2"),
        ("field: maker}", "field: maker, encoding: index}", "features[10].encoding", "category that lists its values"),
        ("field: maker}", "field: maker, parts: [year]}", "features[10].parts", "of kind category: it is no time"),
        ("parts: [year, month", "parts: [year, minute", "features[12].parts[1]", "must be"),
        ("parts: [year, month", "parts: [year, year", "features[12].parts", "must not list a part twice"),
        (", parts: [year, month, weekday, hour]", "", "features[12].field", "use a feature of kind age"),
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
    key = field.rpartition(".")[2].partition("[")[0]
    assert key in text.splitlines()[found[0].line - 1] or key in ("features", "language")


def test_what_is_taken_back_takes_nothing_else_along(layout: Layout) -> None:
    """Where a genre comes late, an event of 1e9 leaves its first genre, and one of 1 beside it stays there."""
    replay, at = Replay(layout), START + 60
    replay.apply([*CATALOGUE, rating("ann", "i0", time=at, value=1e9), rating("ann", "i2", time=at, value=1.0)])
    replay.apply([FieldsChanged("item", "i0", START + 1, {"genres": ["Drama"]})])
    matrix, _ = replay.matrix("ann", ITEMS, RequestContext(at))
    sci_fi, drama = 36 / 6, (35 + 1e9) / 6
    np.testing.assert_allclose(matrix[:, layout.index["genre_score_30d"]], [drama, drama, sci_fi, 7], rtol=1e-6)


@pytest.mark.parametrize("value", [1e39, -1e300])
def test_a_value_beyond_float32_counts_as_its_greatest(layout: Layout, value: float) -> None:
    """No sum of such values is too great to be read: their mean is the greatest float32, and no column is infinite."""
    row = read(layout, [rating("ann", "i0", value=value)] * 1000)
    greatest = math.copysign(float(np.finfo(np.float32).max), value)
    assert float(row["genre_score_30d"][0]) == pytest.approx(greatest, rel=0.01)
    assert all(np.isfinite(column).all() for column in row.values())
