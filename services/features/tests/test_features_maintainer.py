"""Which layout's stream does what the loop needs once, and what becomes of the layouts of a topic in memory."""

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from gyre_core.features import Layout
from gyre_core.layouts import MAX_LAYOUTS, KnownLayout, LayoutDefinition, LayoutState, ModelRole, NamedModel
from gyre_core.spec import parse_loop
from gyre_features.stream.maintainer import LayoutMaintainer
from gyre_local.testing import eventually

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


async def states_of(
    known: dict[str, KnownLayout],
    models: Callable[[], Sequence[NamedModel] | None],
    until: Callable[[], bool],
) -> dict[str, LayoutState]:
    """The states of layouts, whose streams cannot be opened here, once a condition holds while they are maintained."""

    async def publish(layout: KnownLayout) -> None:
        known[layout.hash] = layout

    async def nothing(*_: object) -> int:
        return 0

    catalog: Any = SimpleNamespace(
        known=lambda _loop: known, current=lambda _loop: None, spec=lambda _loop, _hash: None, catch_up=nothing
    )
    unopened: Any = None
    called = {"publish": publish, "remove": nothing, "clear": nothing, "open": unopened, "ready": nothing}
    made = LayoutMaintainer(SPEC, catalog, models=models, grace_s=0.0, **called)
    task = asyncio.create_task(made.run())
    await eventually(until, timeout_s=30, message="the maintainer looks at its layouts")
    made.stop()
    await task
    return {hash_: each.state for hash_, each in known.items()}


def topic_of(*hashes: str) -> dict[str, KnownLayout]:
    """Layouts that are ready, the last declared last."""
    definition = LayoutDefinition.of(SPEC)
    return {
        hash_: KnownLayout(hash_, definition, LayoutState.READY, FILLED + number, FILLED, wanted_by=("gyre.yaml",))
        for number, hash_ in enumerate(hashes)
    }


async def test_nothing_retires_while_it_is_not_known_what_is_named() -> None:
    """While the rollout state is read again the live model's layout stays, and what gyre.yaml declares waits."""
    newest = Layout.compile(SPEC).hash
    looks: list[object] = []

    def unknown() -> None:
        looks.append(None)

    after = await states_of(topic_of("live", newest), unknown, lambda: len(looks) >= 3)
    assert after == {"live": LayoutState.READY, newest: LayoutState.READY}
    named = [NamedModel("v1", ModelRole.LIVE, "live")]
    known = topic_of("live", "between", newest)
    after = await states_of(known, lambda: named, lambda: not known["between"].is_maintained)
    assert after == {"live": LayoutState.READY, "between": LayoutState.RETIRED, newest: LayoutState.READY}


async def test_a_layout_that_is_one_too_many_retires() -> None:
    """Where models name more layouts than are maintained, that of the least important one retires after the grace."""
    newest = Layout.compile(SPEC).hash
    roles = (ModelRole.LIVE, ModelRole.LAST_GOOD, ModelRole.CANDIDATE, ModelRole.WAITING)
    models = [NamedModel(f"v{number}", role, f"layout{number}") for number, role in enumerate(roles)]
    known = topic_of(*(each.layout for each in models), newest)
    after = await states_of(known, lambda: models, lambda: not known["layout3"].is_maintained)
    assert sum(state is LayoutState.READY for state in after.values()) == MAX_LAYOUTS
