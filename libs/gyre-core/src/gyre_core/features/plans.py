"""Which slots one event type touches, worked out once so that folding an event looks nothing up by name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

from gyre_core.features.slots import ID_GROUPS, EntityLayout


@dataclass(frozen=True)
class Plan:
    """The slots of one entity kind that one event type touches, as indices; sums come as (index, half-life in seconds).

    Sums by category come as (index of the field's first category, half-life in seconds, field).
    """

    counts: tuple[tuple[int, float], ...]
    valued: tuple[tuple[int, float], ...]
    values: tuple[tuple[int, float], ...]
    affinities: tuple[tuple[int, float, str], ...]
    valued_by: tuple[tuple[int, float, str], ...]
    values_by: tuple[tuple[int, float, str], ...]
    mins: tuple[int, ...]
    maxs: tuple[int, ...]
    rings: tuple[tuple[int, str], ...]
    windows: tuple[int, ...]

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The item's category fields that the plan reads, each once."""
        by_category = (*self.affinities, *self.valued_by, *self.values_by)
        names = [field for _, _, field in by_category] + [field for _, field in self.rings if field]
        return tuple(dict.fromkeys(name for name in names if name not in ID_GROUPS.values()))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The kinds whose ids part the plan's events into groups: `item`, `user`, or none."""
        named = {field for _, _, field in self.affinities}
        return tuple(kind for kind, field in ID_GROUPS.items() if field in named)


def plan_for(layout: EntityLayout, event: str) -> Plan | None:
    """The plan of an event type for one kind of entity (global, too); None where it touches nothing of that kind.

    It is compiled at each call; `Layout.plan` has those of a layout's events ready.
    """
    plan = Plan(
        counts=_sums(layout, event, "count"),
        valued=_sums(layout, event, "valued"),
        values=_sums(layout, event, "value"),
        affinities=_sums_by(layout, event, "affinity"),
        valued_by=_sums_by(layout, event, "valued_by"),
        values_by=_sums_by(layout, event, "value_by"),
        mins=tuple(index for index, events in enumerate(layout.mins) if event in events),
        maxs=tuple(index for index, events in enumerate(layout.maxs) if event in events),
        rings=tuple((index, ring.field) for index, ring in enumerate(layout.rings) if event in ring.events),
        windows=tuple(index for index, window in enumerate(layout.windows) if event in window.events),
    )
    return plan if any(getattr(plan, each.name) for each in fields(plan)) else None


def _sums(layout: EntityLayout, event: str, measure: str) -> tuple[tuple[int, float], ...]:
    return tuple(
        (index, slot.half_life_s)
        for index, slot in enumerate(layout.sums)
        if slot.measure == measure and event in slot.events
    )


def _sums_by(layout: EntityLayout, event: str, measure: str) -> tuple[tuple[int, float, str], ...]:
    return tuple(
        (index, slot.half_life_s, slot.field)
        for index, slot in enumerate(layout.sums)
        if slot.measure == measure and slot.category == 0 and event in slot.events
    )
