"""Vectors, the caller's order, labels and rates with a learnt prior: what they compute, and what is refused."""

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
    items_needed,
    merge,
)
from gyre_core.features.smoothing import MAX_WEIGHT, learnt_prior
from gyre_core.spec import PRIOR_BUCKETS, LoopSpec, Prior, SpecError, load_loop, parse_loop
from hypothesis import assume, given, settings
from hypothesis import strategies as st

PATH = Path(__file__).parent / "data" / "kinds.yaml"
TEXT = PATH.read_text()
DAY = 86_400.0
START = 1_365_000_000.0
ITEMS = [f"i{number}" for number in range(5)]
CATALOGUE: list[Event] = [
    FieldsChanged("item", "i0", START, {"genres": ["Sci-Fi"], "maker": "a", "embedding": [1.0, 0.0, 0.0]}),
    FieldsChanged("item", "i1", START, {"genres": ["Drama"], "maker": "a", "embedding": [0, -2, 0]}),
    FieldsChanged("item", "i2", START, {"genres": ["Action", "Sci-Fi"], "maker": "c", "embedding": [3.0, 4.0, 0.0]}),
    FieldsChanged("item", "i3", START, {"genres": ["Drama", "Sci-Fi"]}),
    FieldsChanged("user", "ann", START, {"taste": [2.0, 0.0, 0.0]}),
]


@pytest.fixture(scope="module")
def layout() -> Layout:
    """The layout of the loop with these kinds."""
    return Layout.compile(load_loop(PATH))


def stored(layout: Layout, events: Sequence[Event], sizes: Sequence[int] = ()) -> dict[EntityId, bytes]:
    """What the online store holds after batches of these sizes, the last of them repeated; one batch without any."""
    values: dict[EntityId, bytes] = {}
    first, number = 0, 0
    while first < len(events):
        size = sizes[min(number, len(sizes) - 1)] if sizes else len(events)
        batch, number = events[first : first + size], number + 1
        for key, delta in aggregate(layout, batch, lambda item: values.get(("item", item))).items():
            values[key] = merge(layout.slots(key[0]), values.get(key), delta.pack(number))
        first += size
    return values


def read(
    layout: Layout, values: dict[EntityId, bytes], *, user: str = "ann", context: RequestContext | None = None
) -> dict[str, np.ndarray]:
    """The columns of a read of all items, by name."""
    items = [values.get(("item", item)) for item in ITEMS]
    own, everyone = values.get(("user", user)), values.get(("global", GLOBAL_ID))
    matrix, _ = Reader(layout).matrix(own, everyone, items, ITEMS, context or RequestContext(START))
    return dict(zip(layout.columns, matrix.T, strict=True))


def click(user: str, item: str, *, time: float = START) -> UserInteraction:
    """A click."""
    return UserInteraction(user, item, "click", time)


def test_a_vector_has_a_column_for_each_number(layout: Layout) -> None:
    """Components stand in their order, those of the user in every row, and unknown ones are 0."""
    row = read(layout, stored(layout, CATALOGUE))
    found = np.stack([row[f"embedding_{place}"] for place in range(3)], axis=1)
    assert found.tolist() == [[1, 0, 0], [0, -2, 0], [3, 4, 0], [0, 0, 0], [0, 0, 0]]
    assert [row[f"taste_{place}"].tolist() for place in range(3)] == [[2] * 5, [0] * 5, [0] * 5]


def test_vectors_of_user_and_candidate_are_compared(layout: Layout) -> None:
    """Cosine and dot product, 0 for an item without a vector, an unknown item and an unknown user."""
    values = stored(layout, CATALOGUE)
    row = read(layout, values)
    np.testing.assert_allclose(row["match"], [1, 0, 0.6, 0, 0], rtol=1e-6)
    assert row["product"].tolist() == [2, 0, 6, 0, 0]
    assert read(layout, values, user="bob")["match"].tolist() == [0] * 5


@settings(max_examples=50, deadline=None)
@given(
    theirs=st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=3, max_size=3),
    scale=st.sampled_from([1e-30, 1, 1e30]),
)
def test_a_cosine_is_bounded_whatever_the_numbers(layout: Layout, theirs: list[float], scale: float) -> None:
    """Vectors of any size give a finite product, and a cosine from -1 to 1."""
    changes = [
        FieldsChanged("item", "i0", START, {"embedding": theirs}),
        FieldsChanged("user", "ann", START, {"taste": [scale, -scale, scale]}),
    ]
    row = read(layout, stored(layout, changes))
    assert abs(row["match"][0]) <= 1 + 1e-6
    assert np.isfinite(row["product"]).all()


@pytest.mark.parametrize("wrong", [[1.0, 2.0], [1.0, 2.0, float("nan")], ["a", "b", "c"], 1.0, "abc", [1, 2, 3, 4]])
def test_a_vector_of_another_length_or_kind_is_refused(layout: Layout, wrong: object) -> None:
    """The error names the field and how many finite numbers it must have."""
    change = FieldsChanged("item", "i0", START, {"embedding": wrong})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"embedding = .*: must be 3 finite numbers"):
        aggregate(layout, [change], lambda _: None)


def test_position_and_diversity_follow_the_callers_order(layout: Layout) -> None:
    """Places count from 0; of the candidates before it the share counts that has a genre, or the maker, in common."""
    values = stored(layout, CATALOGUE)
    row = read(layout, values)
    assert row["place"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(row["same_genre"], [0, 0, 1 / 2, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(row["same_maker"], [0, 1, 0, 0, 0])


def test_rows_in_another_order_keep_the_callers_places(layout: Layout) -> None:
    """An impression logs items in the order shown: with their positions they have the numbers that were served."""
    values = stored(layout, CATALOGUE)
    served = read(layout, values)
    order = [3, 0, 4, 2, 1]
    items = [values.get(("item", ITEMS[place])) for place in order]
    context = RequestContext(START, positions=order)
    again, _ = Reader(layout).matrix(values["user", "ann"], None, items, [ITEMS[place] for place in order], context)
    for column in ("place", "same_genre", "same_maker", "match"):
        assert again[:, layout.index[column]].tolist() == served[column][order].tolist(), column
    with pytest.raises(ValueError, match="2 positions for 5 items"):
        read(layout, values, context=RequestContext(START, positions=[0, 1]))


@settings(max_examples=60, deadline=None)
@given(held=st.lists(st.sets(st.sampled_from(["Action", "Comedy", "Drama", "Sci-Fi"])), max_size=12), data=st.data())
def test_diversity_is_what_comparing_all_pairs_says(layout: Layout, held: list[set[str]], data: st.DataObject) -> None:
    """Whatever the categories and the caller's order, each share is the count over all candidates before."""
    positions = data.draw(st.permutations(range(len(held))))
    values = stored(
        layout, [FieldsChanged("item", f"i{at}", START, {"genres": sorted(own)}) for at, own in enumerate(held)]
    )
    ids = [f"i{at}" for at in range(len(held))]
    context = RequestContext(START, positions=positions)
    matrix, _ = Reader(layout).matrix(None, None, [values["item", each] for each in ids], ids, context)
    for at, own in enumerate(held):
        before = [other for other, place in zip(held, positions, strict=True) if place < positions[at]]
        share = sum(bool(own & other) for other in before) / max(len(before), 1)
        assert matrix[at, layout.index["same_genre"]] == pytest.approx(share)


def test_labels_are_one_hot(layout: Layout) -> None:
    """A declared label has its column; an undeclared one, and none at all, has no column."""
    shown = {}
    for label in ("Phone", "Desktop PC", "phone", ""):
        row = read(layout, {}, context=RequestContext(START, labels={"device": label, "referrer": "Phone"}))
        shown[label] = (row["device_phone"][0], row["device_desktop_pc"][0])
    assert shown == {"Phone": (1, 0), "Desktop PC": (0, 1), "phone": (0, 0), "": (0, 0)}
    assert read(layout, {}, context=RequestContext(START))["device_phone"].tolist() == [0] * 5


def test_before_any_event_a_smoothed_rate_is_its_declared_prior(layout: Layout) -> None:
    """Nothing seen gives the prior's mean, and a first event is smoothed with its weight."""
    assert read(layout, {})["ctr_1d"].tolist() == pytest.approx([0.1] * 5)
    mean, weight = learnt_prior(*np.zeros((2, 1, PRIOR_BUCKETS)), np.zeros(1), Prior(mean=0.1, weight=20))
    assert (mean[0], weight[0]) == pytest.approx((0.1, 20))


def drawn(rates: np.ndarray, shown: int, draw: np.random.Generator) -> tuple[list[Event], np.ndarray]:
    """Every item shown so many times, and clicked by its rate; and the clicks of each."""
    clicks = draw.binomial(shown, rates)
    names = [f"n{number}" for number in range(len(rates))]
    found: list[Event] = [Impression(f"u{number}", names, START) for number in range(shown)]
    for name, count in zip(names, clicks.tolist(), strict=True):
        found += [click(f"u{number}", name) for number in range(count)]
    return found, clicks


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 38.0), (1.0, 1.0), (30.0, 270.0)])
def test_the_prior_is_learnt_from_how_much_items_differ(layout: Layout, alpha: float, beta: float) -> None:
    """Through the whole fold and read, the rates of 400 items come within a tenth of what the true prior would give."""
    draw = np.random.default_rng(5)
    rates = draw.beta(alpha, beta, 400)
    events, clicks = drawn(rates, 30, draw)
    values = stored(layout, events)
    items = [values.get(("item", f"n{number}")) for number in range(400)]
    matrix, _ = Reader(layout).matrix(None, values["global", GLOBAL_ID], items, [""] * 400, RequestContext(START))

    def error(found: np.ndarray) -> float:
        return float(np.sqrt(((found - rates) ** 2).mean()))

    learnt, best = error(matrix[:, layout.index["ctr_30d"]]), error((clicks + alpha) / (30 + alpha + beta))
    assert learnt < 1.1 * best
    assert learnt < error(clicks / 30)


def test_items_of_one_rate_are_smoothed_the_most() -> None:
    """Where chance alone explains what differs, the weight goes to its bound, so that every item has the mean."""
    draw = np.random.default_rng(3)
    below = np.full((1, PRIOR_BUCKETS), 50_000.0) + draw.integers(0, 5_000, PRIOR_BUCKETS)
    above = below * 0.05
    _, weight = learnt_prior(above, below, np.array([below.sum()]), Prior(mean=0.5, weight=10))
    assert weight[0] == pytest.approx(MAX_WEIGHT)


def test_by_category_the_mean_is_that_of_the_candidates_categories(layout: Layout) -> None:
    """Drama is clicked and the rest is not: a drama that nobody saw is expected to be clicked, and another is not."""
    events = [*CATALOGUE]
    for number in range(50):
        events += [Impression(f"u{number}", ["i0", "i1", "i2"], START), click(f"u{number}", "i1")]
    fresh = [FieldsChanged("item", "i3", START + 1, {"genres": ["Drama"]})]
    row = read(layout, stored(layout, [*events, *fresh]))
    assert row["genre_ctr_30d"][1] > 0.95
    assert row["genre_ctr_30d"][3] > 0.9
    assert row["genre_ctr_30d"][0] < 0.02
    assert row["genre_ctr_30d"][4] == pytest.approx(50 / 160, rel=1e-5)


def test_a_user_has_a_smoothed_rate_of_its_own(layout: Layout) -> None:
    """With scope user the prior is learnt from how users differ, and a user's own events count against it."""
    events = [Impression("ann", ITEMS, START), *(click("ann", item) for item in ITEMS)]
    events += [Impression(f"u{number}", ITEMS, START) for number in range(200)]
    values = stored(layout, events)
    eager, idle = (float(read(layout, values, user=user)["own_ctr_30d"][0]) for user in ("ann", "u7"))
    assert idle < 5 / 1000 < eager


def test_groups_of_ids_are_no_fields_of_items(layout: Layout) -> None:
    """What is summed by a hash of the id asks for no item; what is summed by genre does."""
    only = parse_loop(TEXT.replace(", by: genres", ""), source="test")
    events = [click("ann", "i3"), Impression("bob", ["i0"], START)]
    assert items_needed(Layout.compile(only), events) == []
    assert items_needed(layout, events) == ["i3", "i0"]


def test_a_feature_lives_as_long_wherever_it_is_remembered() -> None:
    """The loop-wide value outlives the longest half-life tenfold; a user's vector with a ttl goes with it."""
    text = TEXT.replace("with: taste", "with: taste, ttl: 3d").replace("scope: user, field: taste", "field: embedding")
    layout = Layout.compile(parse_loop(text, source="test"))
    assert layout.ttl_s("global") == 300 * DAY
    assert layout.ttl_s("user") == 300 * DAY
    assert Layout.compile(load_loop(PATH)).ttl_s("user") is None


def test_packing_is_lossless(layout: Layout) -> None:
    """A value unpacked and packed again is the same bytes, and the empty value is neutral."""
    values = stored(layout, [*CATALOGUE, click("ann", "i0"), Impression("ann", ITEMS, START)])
    for (kind, _), value in values.items():
        entity = layout.slots(kind)
        assert State.unpack(entity, value).pack() == value
        assert merge(entity, value, entity.empty) == value == merge(entity, entity.empty, value)


def test_the_layout_keeps_its_hash(layout: Layout) -> None:
    """What the online store of a loop with these kinds holds stays readable."""
    assert layout.hash == "497728e08a61729d"


times = st.integers(0, 40 * 3600).map(lambda seconds: START + 20 * DAY + seconds)
users, items = st.sampled_from(["ann", "bob"]), st.sampled_from(ITEMS)
vectors = st.lists(st.floats(-9, 9, width=32), min_size=3, max_size=3)
streams = st.lists(
    st.builds(click, users, items, time=times)
    | st.builds(Impression, users, st.lists(items, min_size=1, max_size=4, unique=True), times)
    | st.builds(lambda time, taste: FieldsChanged("user", "ann", time, {"taste": taste}), times, vectors),
    min_size=1,
    max_size=40,
)


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=5)
two_orders = streams.flatmap(lambda events: st.tuples(st.just(events), st.permutations(events)))


@settings(max_examples=60, deadline=None)
@given(orders=two_orders, first_sizes=sizes, second_sizes=sizes)
def test_order_and_batching_do_not_matter(
    layout: Layout, orders: tuple[list[Event], list[Event]], first_sizes: list[int], second_sizes: list[int]
) -> None:
    """Whatever the order and the batch boundaries, every feature is equal to 1e-5 relative, and to the replay's.

    Of changes of one time the later in the log counts, so that their order matters, and there are none here.
    """
    events, shuffled = orders
    changed = [event.time for event in events if isinstance(event, FieldsChanged)]
    assume(len(changed) == len(set(changed)))
    context = RequestContext(START + 22 * DAY)
    first = read(layout, stored(layout, [*CATALOGUE, *events], first_sizes), context=context)
    second = read(layout, stored(layout, [*CATALOGUE, *shuffled], second_sizes), context=context)
    replay = Replay(layout)
    replay.apply([*CATALOGUE, *events])
    matrix, _ = replay.matrix("ann", ITEMS, context)
    for column in layout.columns:
        if column != "ctr_rank":
            np.testing.assert_allclose(first[column], second[column], rtol=1e-5, atol=1e-30, err_msg=column)
            np.testing.assert_allclose(
                first[column], matrix[:, layout.index[column]], rtol=1e-5, atol=1e-30, err_msg=column
            )


REFUSED: tuple[tuple[str, str, str, str], ...] = (
    ("kind: position", "kind: positions", "features[7].kind", "did you mean position?"),
    ("kind: position", "kind: x", "features[7].kind", "must be one of 'field', 'decayed_count'"),
    (
        "kind: vector, length: 3",
        "kind: vector, length: 0",
        "items.fields.embedding.length",
        "greater than or equal to 1",
    ),
    ("kind: vector, length: 3", "kind: vector", "items.fields.embedding.length", "is required"),
    (
        "field: embedding}",
        "field: genres}",
        "features[3].field",
        "is of kind categories: must be a field of kind vector",
    ),
    ("field: embedding}", "field: embeding}", "features[3].field", "a declared item field: genres, maker, embedding"),
    (
        "kind: vector, field: embedding}",
        "kind: field, field: embedding}",
        "features[3].field",
        "feature of kind vector",
    ),
    ("with: taste}", "with: mood}", "features[4].with", "the length of the item field embedding: 3 numbers, not 2"),
    ("with: taste}", "with: name}", "features[4].with", "is of kind text: must be a user field of kind vector"),
    ("with: taste}", "with: tastes}", "features[4].with", "must be a declared user field: taste, mood, name"),
    ("with: taste}", "with: taste, scope: user}", "features[4]", "must have scope item"),
    ("scope: user, field: taste}", "field: embedding, measure: dot}", "features[6]", "only together with `with`"),
    ("measure: dot", "measure: angle", "features[5].measure", "must be 'cosine' or 'dot'"),
    ("diversity, field: genres", "diversity, field: released", "features[8].field", "of kind category or categories"),
    (
        "diversity, field: genres",
        "diversity, field: genre",
        "features[8].field",
        "must be a declared item field: genres",
    ),
    ("position}", "position, of: ctr_30d}", "features[7].of", "is not a known field here"),
    ("values: [Phone, Desktop PC]", "values: [Phone, Phone]", "features[10]", "must not list a value twice"),
    ("values: [Phone, Desktop PC]", "values: [a b, a-b]", "features[10].name", "gives the column device_a_b, which"),
    ("values: [Phone, Desktop PC]", "values: [Phone], default: 1", "features[10]", "`default` only without `values`"),
    ("field: hour}", "field: hour, values: [a]}", "features[11]", "no `values` with hour or weekday"),
    ("weight: 20", "weight: 0", "features[0].prior.weight", "greater than 0"),
    ("mean: 0.1", "mean: 2", "features[0]", "a mean from 0 to 1: the rate is a share"),
    ("by: genres", "by: released", "features[1].by", "of kind category or categories"),
    ("scope: user, events", "scope: user, by: genres, events", "features[2]", "`by` only with scope item"),
    ("scope: user, events", "scope: global, events", "features[2].scope", "must be 'item' or 'user'"),
    ("per: [impression]", "per: [shown]", "features[0].per[0]", "declared event types: click, buy, impression"),
    ("of: ctr_30d", "of: ctr_3d", "features[12].of", "must be a column of an earlier feature: did you mean ctr_30d?"),
    ("of: ctr_30d", "of: ctr_rank", "features[12].of", "this is a cycle: ctr_rank of ctr_rank"),
)


@pytest.mark.parametrize(("old", "new", "field", "rule"), REFUSED)
def test_what_cannot_be_computed_is_refused(old: str, new: str, field: str, rule: str) -> None:
    """A wrong reference or kind is an issue at its own line that says what would be right."""
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    with pytest.raises(SpecError) as caught:
        parse_loop(text, source="test")
    found = [issue for issue in caught.value.issues if issue.field == field]
    assert found, caught.value.issues
    assert rule in found[0].rule
    changed = next(number for number, line in enumerate(text.splitlines()) if line != TEXT.splitlines()[number])
    assert found[0].line - 1 in range(changed - 5, changed + 1)


def test_a_column_of_a_later_feature_is_refused() -> None:
    """The rule says behind which feature to move, and names the whole cycle where moving would not help."""
    features = "  - {name: a, kind: rank, of: b}\n  - {name: b, kind: zscore, of: %s}\n  - {name: ctr_rank"
    issues = {}
    for of in ("ctr_1d", "a"):
        with pytest.raises(SpecError) as caught:
            parse_loop(TEXT.replace("  - {name: ctr_rank", features % of), source="test")
        issues[of] = [(issue.field, issue.line, issue.rule) for issue in caught.value.issues]
    line = TEXT.splitlines().index("  - {name: ctr_rank, kind: rank, of: ctr_30d}") + 1
    earlier = "must be a column of an earlier feature"
    assert issues["ctr_1d"] == [("features[12].of", line, f"{earlier}: move it behind b")]
    assert issues["a"] == [("features[12].of", line, f"{earlier}, and this is a cycle: a of b of a")]


def test_values_too_long_for_the_store_are_refused() -> None:
    """Vectors and learnt priors count towards what one script of Redis can hold."""
    many = ", ".join(f"c{number}" for number in range(250))
    lives = ", ".join(f"{number}d" for number in range(1, 16))
    text = TEXT.replace("Action, Comedy, Drama, Sci-Fi", many).replace(
        "by: genres, events: [click], per: [impression], half_lives: [30d]",
        f"by: genres, events: [click], per: [impression], half_lives: [{lives}]",
    )
    with pytest.raises(SpecError, match="needs 9435 numbers in a value of scope global"):
        parse_loop(text, source="test")
    long = [f"    v{number}: {{kind: vector, length: 1024}}" for number in range(7)]
    used = [f"  - {{name: v{number}, kind: vector, field: v{number}}}" for number in range(7)]
    text = TEXT.replace("    released:", "\n".join([*long, "    released:"]))
    text = text.replace("  - {name: place", "\n".join([*used, "  - {name: place"]))
    with pytest.raises(SpecError, match="or shorter vectors"):
        parse_loop(text, source="test")


@pytest.mark.parametrize("name", ["kinds", "algebra", "full", "minimal"])
def test_a_loop_can_be_handed_on(name: str) -> None:
    """A training job gets its loop as JSON: read again, it is the same loop with the same layout."""
    spec = load_loop(PATH.with_name(f"{name}.yaml"))
    again = LoopSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert Layout.compile(again).hash == Layout.compile(spec).hash
