"""Which layout's stream does what the loop needs once."""

from types import SimpleNamespace
from typing import Any

from gyre_core.layouts import KnownLayout, LayoutDefinition, LayoutState
from gyre_core.spec import parse_loop
from gyre_features.stream.maintainer import LayoutMaintainer

FILLED = 1_700_000_000.0
SPEC = parse_loop(
    """
version: 1
loop: shop
events: {interactions: {click: {}}}
features: [{name: popular, kind: decayed_count, scope: item, events: [click], half_lives: [1d]}]
"""
)


def maintainer(**states: LayoutState) -> LayoutMaintainer:
    """A maintainer that knows layouts in these states; the last is the current one, filled at FILLED."""
    definition = LayoutDefinition.of(SPEC)
    known = {each: KnownLayout(each, definition, state, FILLED, FILLED) for each, state in states.items()}
    catalog: Any = SimpleNamespace(known=lambda _loop: known, current=lambda _loop: list(known.values())[-1])
    unused: Any = None
    called = dict.fromkeys(("publish", "remove", "clear", "open", "ready"), unused)
    return LayoutMaintainer(SPEC, catalog, models=list, grace_s=0.0, **called)


def came(after_s: float) -> Any:
    """A record that Kafka took in so long after the current layout was filled."""
    return SimpleNamespace(timestamp=int((FILLED + after_s) * 1000))


def test_the_layout_before_writes_what_the_current_one_took_from_the_warehouse() -> None:
    """However late it reads what came before the newer layout was filled, its dead letters are not missed."""
    both = maintainer(old=LayoutState.READY, new=LayoutState.READY)
    assert both.writes_dead_letters("new", came(-5))
    assert both.writes_dead_letters("new", came(3600))
    assert both.writes_dead_letters("old", came(-3600))
    assert not both.writes_dead_letters("old", came(3600))


def test_a_layout_that_is_filled_beside_another_writes_no_dead_letters() -> None:
    """The other's stream does."""
    filling = maintainer(new=LayoutState.FILLING, old=LayoutState.READY)
    assert not filling.writes_dead_letters("new", came(-5))
    assert filling.writes_dead_letters("old", came(-5))
    assert maintainer(first=LayoutState.FILLING).writes_dead_letters("first", came(-5))
