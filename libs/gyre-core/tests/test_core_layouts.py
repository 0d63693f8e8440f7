"""Layouts side by side: definitions that outlive gyre.yaml, which layouts are wanted, and what becomes of each."""

from dataclasses import replace

import pytest
from gyre_core.features import Layout
from gyre_core.layouts import (
    MAX_LAYOUTS,
    Declared,
    KnownLayout,
    LayoutDefinition,
    LayoutRefused,
    LayoutState,
    ModelRole,
    NamedModel,
    Wants,
    changes,
    compiled,
    declare,
    removable,
    require_maintainable,
    wanted_layouts,
)
from gyre_core.spec import LoopSpec, parse_loop

TEXT = """
version: 1
loop: shop
events: {interactions: {click: {}, sale: {value: {min: 0, max: 10}}}}
items: {fields: {price: {kind: number}, genre: {kind: category, values: [red, green]}}}
features:
  - {name: popular, kind: decayed_count, scope: item, events: [click], half_lives: [7d]}
  - {name: price, kind: field, scope: item, field: price}
  - {name: taste, kind: affinity, field: genre, events: [sale], half_lives: [30d]}
model: {features: [popular, taste]}
serving: {fallback_feature: popular_7d, recommend: {genre_field: genre}}
"""


def spec(*edits: tuple[str, str]) -> LoopSpec:
    """The loop, with parts of its gyre.yaml replaced."""
    text = TEXT
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return parse_loop(text)


def known(of: LoopSpec, state: LayoutState = LayoutState.READY, *, at: float = 0.0, by: str = "live v1") -> KnownLayout:
    """The layout of a spec as the topic knows it."""
    definition = LayoutDefinition.of(of)
    return KnownLayout(Layout.compile(of).hash, definition, state, at, at, wanted_by=(by,))


def numbered(number: int) -> LoopSpec:
    """The loop with a half-life that no other number has."""
    return spec(("[7d]", f"[{number}d]"), ("popular_7d", f"popular_{number}d"))


def by_hash(*layouts: KnownLayout) -> dict[str, KnownLayout]:
    """Layouts as the topic's view holds them."""
    return {each.hash: each for each in layouts}


def test_a_definition_compiles_to_its_layout_whatever_gyre_yaml_says_meanwhile() -> None:
    """A definition read back from its JSON compiles to the layout it was taken from, beside any newer gyre.yaml."""
    old = spec()
    written = LayoutDefinition.of(old).model_dump_json()
    newest = parse_loop(
        "version: 1\nloop: shop\nevents: {interactions: {view: {}}}\n"
        "features: [{name: seen, kind: decayed_count, scope: item, events: [view], half_lives: [1h]}]\n"
    )
    found = replace(known(old), definition=LayoutDefinition.model_validate_json(written))
    made = compiled(found, newest)
    assert made is not None
    assert Layout.compile(made) == replace(Layout.compile(old), model_columns=old.columns())
    assert (made.serving.fallback_feature, made.serving.recommend.genre_field) == ("popular_7d", "genre")


def test_a_definition_that_compiles_to_another_layout_is_told_apart() -> None:
    """A record under a hash that its definition does not give is not taken for that layout."""
    assert compiled(replace(known(spec()), hash="0123456789abcdef"), spec()) is None


def test_an_event_type_that_no_feature_counts_changes_no_layout() -> None:
    """A type declared before the others changes neither hash nor the order by which a layout numbers its events."""
    before, after = Layout.compile(spec()), Layout.compile(spec(("{click: {},", "{again: {}, click: {},")))
    assert (before.hash, before.events) == (after.hash, after.events)


def test_what_answers_requests_comes_first() -> None:
    """Layouts are wanted in the order live, last good, gyre.yaml, candidate, waiting, each with all that wants it."""
    models = [
        NamedModel("v5", ModelRole.WAITING, "e"),
        NamedModel("v4", ModelRole.CANDIDATE, "d"),
        NamedModel("v2", ModelRole.LAST_GOOD, "b"),
        NamedModel("v3", ModelRole.LIVE, "a"),
        NamedModel("v6", ModelRole.WAITING, "a"),
        NamedModel("v0", ModelRole.LAST_GOOD, ""),
    ]
    wanted = wanted_layouts("c", models)
    assert list(wanted) == ["a", "b", "c", "d", "e"]
    assert wanted["a"] == ("live v3", "waiting v6")
    assert wanted_layouts("a", models)["a"] == ("gyre.yaml", "live v3", "waiting v6")


def test_a_layout_that_is_wanted_again_is_filled_into_a_store_of_its_own() -> None:
    """A retirement ends a layout's store, so nobody deletes keys that somebody writes again."""
    ready = known(spec())
    assert (ready.generation, ready.former_stores()) == (0, frozenset())
    retired = ready.with_state(LayoutState.RETIRED, now=1.0)
    assert (retired.generation, retired.former_stores()) == (0, {ready.hash})
    (again,) = changes(Wants(ready.hash, [], {}, 0.0), by_hash(retired), now=2.0)
    assert (again.state, again.generation, again.former_stores()) == (LayoutState.FILLING, 1, {ready.hash})
    declared = declare(Declared(ready.hash, ready.definition), by_hash(retired), now=2.0)
    assert declared is not None
    assert declared.generation == 1
    filled = again.with_state(LayoutState.READY, now=3.0)
    assert filled.generation == 1
    assert filled.with_state(LayoutState.RETIRED, now=4.0).former_stores() == {ready.hash, f"{ready.hash}.1"}


def test_a_fifth_layout_is_refused_by_name() -> None:
    """With four layouts wanted a fifth is refused, with the layout that must retire first; one that is known is not."""
    four = [known(numbered(number)) for number in range(1, 1 + MAX_LAYOUTS)]
    roles = (ModelRole.LIVE, ModelRole.LAST_GOOD, ModelRole.CANDIDATE, ModelRole.WAITING)
    models = [NamedModel(f"v{n}", role, each.hash) for n, (role, each) in enumerate(zip(roles, four, strict=True))]
    fifth = known(numbered(9))
    with pytest.raises(
        LayoutRefused, match=f"{four[3].hash} must retire first, which is wanted by waiting v3"
    ) as found:
        require_maintainable(fifth.hash, fifth.definition, by_hash(*four), models)
    assert found.value.reason == "TOO_MANY_LAYOUTS"
    require_maintainable(four[0].hash, four[0].definition, by_hash(*four), models)
    require_maintainable(fifth.hash, fifth.definition, by_hash(*four), models[:3])
    retired = by_hash(*four, replace(fifth, state=LayoutState.RETIRED))
    with pytest.raises(LayoutRefused):
        require_maintainable(fifth.hash, fifth.definition, retired, models)


@pytest.mark.parametrize(
    ("edit", "path"),
    [
        (("price: {kind: number}", "price: {kind: text}"), "items.fields.price"),
        (("{kind: category, values: [red, green]}", "{kind: categories, values: [red, green]}"), "items.fields.genre"),
    ],
)
def test_a_field_cannot_change_its_kind_in_place(edit: tuple[str, str], path: str) -> None:
    """Another kind for a field of a maintained layout is refused with the way in two steps, and allowed afterwards."""
    old, new = known(spec()), known(spec(edit))
    with pytest.raises(LayoutRefused, match=f"{path}: kind is .*Add a new field beside it, and remove {path}") as found:
        require_maintainable(new.hash, new.definition, by_hash(old), [])
    assert found.value.reason == "KIND_CHANGED"
    require_maintainable(new.hash, new.definition, by_hash(replace(old, state=LayoutState.RETIRED)), [])
    more = known(spec(("price: {kind: number}", "price: {kind: number}, cost: {kind: text}")))
    require_maintainable(more.hash, more.definition, by_hash(old), [])


def test_the_newest_layout_is_declared_once() -> None:
    """A start declares a new layout as FILLING, an older or changed one anew, and says nothing of what stands."""
    old, new = known(spec(), at=1.0), known(numbered(9))
    newest = Declared(new.hash, new.definition)
    first = declare(newest, by_hash(old), now=5.0)
    assert first == replace(
        new, state=LayoutState.FILLING, declared_time=5.0, change_time=5.0, wanted_by=("gyre.yaml",)
    )
    assert declare(newest, by_hash(old, first), now=6.0) is None
    back = declare(Declared(old.hash, old.definition), by_hash(old, first), now=7.0)
    assert back == replace(old, declared_time=7.0)
    again = declare(newest, by_hash(back, first.with_state(LayoutState.RETIRED, now=8.0)), now=9.0)
    assert (again.state, again.declared_time) == (LayoutState.FILLING, 9.0)


def test_the_newest_layout_is_declared_after_one_of_a_clock_that_was_ahead() -> None:
    """What is declared now is declared last, whatever time the topic says of others, so that those may retire."""
    ahead, new = known(spec(), at=1000.0, by="gyre.yaml"), known(numbered(9))
    first = declare(Declared(new.hash, new.definition), by_hash(ahead), now=5.0)
    topic = by_hash(ahead, replace(first, state=LayoutState.READY))
    assert declare(Declared(new.hash, new.definition), topic, now=6.0) is None
    wants = Wants(new.hash, [], {ahead.hash: 5.0}, grace_s=1.0)
    assert [(each.hash, each.state) for each in changes(wants, topic, now=7.0)] == [(ahead.hash, LayoutState.RETIRED)]


def test_a_layout_retires_once_nothing_wanted_it_for_long_enough() -> None:
    """What no model names is retired after the grace by who holds the newest gyre.yaml; named again, it is filled."""
    old, new = known(spec(), at=1.0), known(numbered(9), at=2.0, by="gyre.yaml")
    both, since = by_hash(old, new), {old.hash: 100.0}
    wants = Wants(new.hash, [], since, grace_s=60.0)
    unwanted = replace(old, wanted_by=())
    assert changes(wants, both, now=159.0) == [unwanted]
    assert changes(wants, by_hash(unwanted, new), now=159.0) == []
    assert changes(wants, both, now=160.0) == [replace(old.with_state(LayoutState.RETIRED, now=160.0), wanted_by=())]
    assert changes(replace(wants, newest=old.hash, unwanted_since={new.hash: 100.0}), both, now=200.0) == []
    named = [NamedModel("v1", ModelRole.LAST_GOOD, old.hash)]
    assert changes(replace(wants, models=named), both, now=200.0) == [replace(old, wanted_by=("last good v1",))]
    gone = replace(old, state=LayoutState.RETIRED, wanted_by=())
    (back,) = changes(replace(wants, models=named), by_hash(gone, new), now=200.0)
    assert (back.state, back.wanted_by) == (LayoutState.FILLING, ("last good v1",))


def test_what_answers_is_never_dropped_for_what_waits() -> None:
    """Where models name more than four layouts, the one of a waiting candidate is the one that is not maintained."""
    five = [known(numbered(number), at=float(number)) for number in range(1, 6)]
    roles = (ModelRole.WAITING, ModelRole.LIVE, ModelRole.LAST_GOOD, ModelRole.CANDIDATE)
    models = [NamedModel(f"v{n}", role, each.hash) for n, (role, each) in enumerate(zip(roles, five[:4], strict=True))]
    wants = Wants(five[4].hash, models, {each.hash: 0.0 for each in five}, grace_s=1.0)
    retired = [each.hash for each in changes(wants, by_hash(*five), now=10.0) if not each.is_maintained]
    assert retired == [five[0].hash]


def test_a_definition_is_removable_once_nothing_needs_it() -> None:
    """Only what was retired long enough ago, and nothing wants; a process with an older gyre.yaml removes nothing."""
    newest, old, young, named, live = (numbered(number) for number in range(1, 6))
    topic = by_hash(
        known(newest, at=90.0),
        known(old, LayoutState.RETIRED, at=10.0),
        known(young, LayoutState.RETIRED, at=60.0),
        known(named, LayoutState.RETIRED, at=10.0),
        known(live, at=10.0),
    )
    hash_of = {name: Layout.compile(each).hash for name, each in (("newest", newest), ("old", old), ("named", named))}
    models = (NamedModel("v1", ModelRole.WAITING, hash_of["named"]),)
    wants = Wants(hash_of["newest"], models, {}, 0.0)
    assert removable(wants, topic, lambda _: 50.0, now=100.0) == [hash_of["old"]]
    assert removable(replace(wants, newest=hash_of["old"]), topic, lambda _: 50.0, now=100.0) == []
