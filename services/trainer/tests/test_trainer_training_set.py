"""Attribution, and the features of a training set: what was served, or what stood strictly before the impression."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from gyre_core.features import FieldsChanged, Layout, Replay, RequestContext, UserInteraction
from gyre_core.spec import ContextFeature, LabelSpec, PositionFeature
from gyre_trainer.training_set import build
from hypothesis import given, settings
from hypothesis import strategies as st

BEGIN = 1_370_000_000
WINDOW_S = 1800
WEIGHTS = {"click": 1.0, "buy": 3.0}

users = st.sampled_from(["u0", "u1"])
items = st.sampled_from(["a", "b", "c", "d"])
moments = st.integers(0, 3 * WINDOW_S).map(lambda steps: BEGIN + steps // 300 * 300)
impressions = st.tuples(users, st.lists(items, min_size=1, max_size=4, unique=True), moments)
interactions = st.tuples(
    users, items, st.sampled_from(["click", "buy"]), moments, st.sampled_from(["", "r0", "r1", "r9"]), st.booleans()
)


def reference(shown: list, acted: list, *, now: float, most: int) -> list[tuple[float, list[float]]]:
    """(time, relevance of each item) of every impression that is closed and labelled, by brute force."""
    closed = [
        (time, number, user, held)
        for number, (user, held, time) in enumerate(shown)
        if time + WINDOW_S <= now and len(held) > 1
    ]
    found = []
    for time, number, user, held in sorted(closed)[-most:]:
        relevance = [0.0] * len(held)
        for who, item, kind, at, request_id, _ in acted:
            named = who == user and request_id in ("", f"r{number}")
            if named and item in held and time <= at <= time + WINDOW_S:
                relevance[held.index(item)] = max(relevance[held.index(item)], WEIGHTS[kind])
        if any(relevance):
            found.append((time, relevance))
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(impressions, max_size=6), st.lists(interactions, max_size=10), st.integers(1, 6))
def test_attribution_is_what_brute_force_says(make_spec, new_history, shown, acted, most) -> None:
    """Whatever was shown and done, in whatever order and sent twice, each item gets its greatest label, or none."""
    history = new_history()
    for user, held, time in shown:
        history.show(user, held, time=time)
    for user, item, kind, time, request_id, twice in acted:
        history.act(user, item, time=time, kind=kind, request_id=request_id)
        if twice:
            history.interactions.append({**history.interactions[-1], "kafka_offset": 1000 + len(history.interactions)})
    spec = make_spec(history=most)
    now = BEGIN + 2 * WINDOW_S
    made = build(spec, Layout.compile(spec), history.tables(), now=now)
    wanted = reference(shown, acted, now=now, most=most)
    assert made.times.tolist() == [time for time, _ in wanted]
    assert [row[row >= 0].tolist() for row in made.relevance] == [relevance for _, relevance in wanted]
    assert made.open_windows == sum(time + WINDOW_S > now for _, _, time in shown)


def shares(label: LabelSpec, shown: list, who: str, item: str, at: float) -> dict[int, float]:
    """What each impression gets of one interaction that names none, by brute force."""
    touched = [
        (time, number)
        for number, (user, held, time) in enumerate(shown)
        if user == who and item in held and time <= at <= time + WINDOW_S
    ]
    if label.credit == "last":
        return {max(touched)[1]: 1.0} if touched else {}
    halves = {number: 2.0 ** (-(at - time) / label.half_life_s) for time, number in touched}
    parts = halves if label.credit == "decay" else dict.fromkeys(halves, 1.0)
    whole = sum(parts.values()) if label.credit != "all" else 1.0
    return {number: part / whole for number, part in parts.items()}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(impressions, max_size=6),
    st.lists(interactions, max_size=10),
    st.sampled_from(["all", "last", "linear", "decay"]),
    st.sampled_from(["greatest", "sum"]),
)
def test_credit_is_shared_as_brute_force_says(make_spec, new_history, shown, acted, credit, combine) -> None:
    """Whoever shares an interaction, an open impression too, each item gets the greatest share or the sum of all."""
    history, spec = new_history(), make_spec()
    label = spec.training.label.model_copy(update={"credit": credit, "combine": combine})
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"label": label})})
    relevance = [dict.fromkeys(held, 0.0) for _, held, _ in shown]
    for user, held, time in shown:
        history.show(user, held, time=time)
    for user, item, kind, time, request_id, _ in acted:
        history.act(user, item, time=time, kind=kind, request_id=request_id)
        own = [
            (number, 1.0)
            for number, (who, held, begin) in enumerate(shown)
            if who == user and request_id == f"r{number}" and item in held and begin <= time <= begin + WINDOW_S
        ]
        for number, share in own if request_id else shares(label, shown, user, item, time).items():
            got = relevance[number]
            weight = WEIGHTS[kind] * share
            got[item] = got[item] + weight if combine == "sum" else max(got[item], weight)
    now = BEGIN + 2 * WINDOW_S
    made = build(spec, Layout.compile(spec), history.tables(), now=now)
    closed = sorted((time, number) for number, (_, held, time) in enumerate(shown) if time + WINDOW_S <= now)
    wanted = [list(relevance[number].values()) for _, number in closed if any(relevance[number].values())]
    wanted = [row for row in wanted if len(row) > 1]
    assert [row[row >= 0].tolist() for row in made.relevance] == [pytest.approx(row) for row in wanted]


def test_a_request_belongs_to_its_user(spec, layout, new_history) -> None:
    """A stranger's click labels nothing, two users may have one request id, and a request has one impression."""
    history = new_history()
    history.show("u0", ["a", "b"], time=BEGIN, request_id="r")
    history.show("u1", ["a", "b"], time=BEGIN, request_id="r")
    history.show("u0", ["b", "a"], time=BEGIN - 60, request_id="r")  # later in Kafka: a copy by somebody else
    history.act("u0", "a", time=BEGIN + 10, request_id="r")
    history.act("u1", "b", time=BEGIN + 10, request_id="r")
    history.act("u9", "b", time=BEGIN + 10, request_id="r")
    made = build(spec, layout, history.tables(), now=BEGIN + WINDOW_S)
    assert made.relevance.tolist() == [[1, 0], [0, 1]]


def test_features_of_users_are_as_they_were_known_then(make_spec, new_history) -> None:
    """Fields of a user hold from their change on, as when served; before it, and for others, they are the default."""
    spec, history = make_spec(users=True), new_history()
    history.user("u0", time=BEGIN, member=True)
    history.user("u0", time=BEGIN + 5000, member=False)
    for number, (user, time) in enumerate((("u0", -100), ("u0", 4000), ("u0", 6000), ("u1", 7000))):
        history.show(user, ["a", "b"], time=BEGIN + time)
        history.act(user, "a", time=BEGIN + time + 60, request_id=f"r{number}")
    made = build(spec, Layout.compile(spec), history.tables(), now=BEGIN + 20_000)
    member = made.features[:, :, Layout.compile(spec).index["member"]]
    assert member.tolist() == [[0, 0], [1, 1], [0, 0], [0, 0]]


def test_interactions_that_came_late_count_and_are_counted(make_spec, new_history) -> None:
    """One that happened inside the window is a label though it was taken in after it; the set says how many did."""
    spec = make_spec().model_copy(update={"clock": "wall"})
    history = new_history()
    for number, delay in enumerate((0, WINDOW_S - 60, WINDOW_S - 59, 10 * WINDOW_S)):
        history.show(f"u{number}", ["a", "b"], time=BEGIN)
        history.act(f"u{number}", "a", time=BEGIN + 60)
        history.interactions[-1]["ingest_time"] += timedelta(seconds=delay)
    made = build(spec, Layout.compile(spec), history.tables(), now=BEGIN + WINDOW_S)
    assert (len(made), made.late) == (4, 2)


def test_the_window_holds_both_its_ends(spec, layout, new_history) -> None:
    """An interaction at the impression's own time and at the window's last moment counts, one beside them does not."""
    history = new_history()
    for number, at in enumerate((-1, 0, WINDOW_S, WINDOW_S + 1)):
        history.show(f"u{number}", ["a", "b"], time=BEGIN)
        history.act(f"u{number}", "a", time=BEGIN + at)
    made = build(spec, layout, history.tables(), now=BEGIN + WINDOW_S)
    assert made.relevance.tolist() == [[1, 0], [1, 0]]
    assert made.unlabelled == 2


def test_on_the_replay_clock_now_is_the_newest_event(spec, layout, new_history) -> None:
    """Without a given time, the newest event of either table decides which windows are open."""
    history = new_history()
    history.show("u0", ["a", "b"], time=BEGIN)
    history.act("u0", "a", time=BEGIN + 5)
    assert build(spec, layout, history.tables()).open_windows == 1
    history.act("u1", "b", time=BEGIN + WINDOW_S)
    made = build(spec, layout, history.tables())
    assert (len(made), made.open_windows) == (1, 0)


def test_an_impression_sent_twice_counts_once(spec, layout, new_history) -> None:
    """A producer's duplicate of an impression is one impression of the training set."""
    history = new_history()
    history.show("u0", ["a", "b"], time=BEGIN)
    history.impressions.append({**history.impressions[0], "kafka_offset": 9})
    history.act("u0", "b", time=BEGIN + 5)
    assert len(build(spec, layout, history.tables(), now=BEGIN + WINDOW_S)) == 1


def test_features_stand_strictly_before_the_impression(spec, layout, new_history) -> None:
    """What happens at the impression's time or later is not in its features; all before it is, as the stream folds."""
    history = new_history()
    history.item("a", time=BEGIN - 900, genre="drama")
    history.item("b", time=BEGIN - 900, genre="comedy")
    for at in (-600, -300, 0, 60):
        history.act("u0", "a", time=BEGIN + at)
    history.show("u0", ["a", "b"], time=BEGIN)
    made = build(spec, layout, history.tables(), now=BEGIN + WINDOW_S)
    replay = Replay(layout)
    replay.apply(
        FieldsChanged("item", item, BEGIN - 900, {"genre": genre}) for item, genre in (("a", "drama"), ("b", "comedy"))
    )
    replay.apply(UserInteraction("u0", "a", "click", BEGIN + at) for at in (-600, -300))
    wanted, _ = replay.matrix("u0", ["a", "b"], RequestContext(BEGIN))
    np.testing.assert_array_equal(made.features[0], wanted)
    assert 1.9 < made.features[0, 0, layout.index["popular_7d"]] < 2.0
    assert not made.served.any()


def test_a_catalogue_that_came_late_holds_from_the_beginning(spec, layout, new_history) -> None:
    """An item's first known fields count before their own time; later changes count from theirs."""
    history = new_history()
    history.act("u0", "a", time=BEGIN - 60)
    history.show("u0", ["a", "b"], time=BEGIN)
    history.act("u0", "a", time=BEGIN + 60)
    history.item("a", time=BEGIN + 10_000, genre="drama")
    history.item("a", time=BEGIN + 20_000, genre="comedy")
    taste = build(spec, layout, history.tables(), now=BEGIN + WINDOW_S).features[0, :, layout.index["taste_30d"]]
    assert taste.tolist() == [1.0, 0.0]


def test_a_request_is_replayed_with_its_context(make_spec, new_history) -> None:
    """Numbers, labels and the caller's order come from the impression; without them, defaults and the logged order."""
    spec = make_spec()
    added = (
        ContextFeature(name="load", kind="context", field="load", default=-1.0),
        ContextFeature(name="device", kind="context", field="device", values=("phone",)),
        PositionFeature(name="place", kind="position"),
    )
    spec = spec.model_copy(update={"features": (*spec.features, *added)})
    layout, history = Layout.compile(spec), new_history()
    given = {"context": [("load", 3.0)], "labels": [("device", "phone")], "positions": [4, 0]}
    for number, context in enumerate((given, {})):
        history.show(f"u{number}", ["a", "b"], time=BEGIN + number, **context)
        history.act(f"u{number}", "b", time=BEGIN + number + 1)
    made = build(spec, layout, history.tables(), now=BEGIN + 2 * WINDOW_S)
    columns = [layout.index[name] for name in ("load", "device_phone", "place")]
    assert made.features[:, :, columns].tolist() == [[[3, 1, 4], [3, 1, 0]], [[-1, 0, 0], [-1, 0, 1]]]


def test_served_features_are_used_as_they_are(spec, layout, new_history) -> None:
    """Features of the current layout are taken from the impression; those of another one are computed again."""
    served = np.arange(2 * len(layout.columns), dtype="<f4").reshape(2, -1)
    history = new_history()
    for number, name in enumerate((layout.hash, "another")):
        history.show(
            f"u{number}", ["a", "b"], time=BEGIN + number, layout=name, features=served.tobytes(), item_batches=[-1, 4]
        )
        history.act(f"u{number}", "b", time=BEGIN + number + 1)
    made = build(spec, layout, history.tables(), now=BEGIN + 2 * WINDOW_S)
    assert made.served.tolist() == [True, False]
    np.testing.assert_array_equal(made.features[0], served)
    assert not np.array_equal(made.features[1], served)
    assert made.unknown_items.tolist() == [1, 2]


def test_lists_of_different_length_are_padded(spec, layout, new_history) -> None:
    """Beyond an impression's items relevance is -1 and features are zero."""
    history = new_history()
    history.show("u0", ["a", "b", "c"], time=BEGIN)
    history.show("u1", ["a", "b"], time=BEGIN + 1)
    for user in ("u0", "u1"):
        history.act(user, "a", time=BEGIN + 2)
    made = build(spec, layout, history.tables(), now=BEGIN + 2 * WINDOW_S)
    assert made.relevance.tolist() == [[1, 0, 0], [1, 0, -1]]
    assert made.held.sum() == 5
    assert not made.features[1, 2].any()


@pytest.mark.parametrize(("count", "holdout", "newest"), [(10, 0.2, 2), (10, 0.01, 1), (2, 0.9, 2), (5, 0.5, 2)])
def test_the_newest_are_held_out(spec, layout, new_history, count, holdout, newest) -> None:
    """The split keeps every impression once, the newest share apart, and at least one of them."""
    history = new_history()
    for number in range(count):
        history.show(f"u{number}", ["a", "b"], time=BEGIN + number)
        history.act(f"u{number}", "a", time=BEGIN + number)
    made = build(spec, layout, history.tables(), now=BEGIN + 2 * WINDOW_S)
    training, held_out = made.split(holdout)
    assert len(held_out) == newest
    assert [*training.times, *held_out.times] == made.times.tolist()


def test_nothing_makes_an_empty_set(spec, layout, new_history) -> None:
    """Empty tables make an empty training set of the layout's width."""
    made = build(spec, layout, new_history().tables())
    assert made.features.shape == (0, 0, len(layout.columns))
