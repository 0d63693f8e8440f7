"""Which slots one event type touches, worked out once so that folding an event looks nothing up by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from gyre_core.features.slots import EntityLayout


@dataclass(frozen=True)
class Plan:
    """The slots of one entity kind that one event type touches; sums come as (slot, half-life in seconds)."""

    counts: tuple[tuple[int, float], ...]
    valued: tuple[tuple[int, float], ...]
    values: tuple[tuple[int, float], ...]
    affinities: tuple[tuple[int, float, str], ...]
    mins: tuple[int, ...]
    maxs: tuple[int, ...]
    rings: tuple[tuple[int, str], ...]

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The item's category fields that the plan reads."""
        names = [field for _, _, field in self.affinities] + [field for _, field in self.rings if field]
        return tuple(dict.fromkeys(names))


def plan_for(layout: EntityLayout, event: str) -> Plan | None:
    """The plan of an event type, or None where it touches nothing of this kind."""
    plan = Plan(
        counts=_sums(layout, event, "count"),
        valued=_sums(layout, event, "valued"),
        values=_sums(layout, event, "value"),
        affinities=tuple(
            (index, slot.half_life_s, slot.field)
            for index, slot in enumerate(layout.sums)
            if slot.measure == "affinity" and slot.category == 0 and event in slot.events
        ),
        mins=tuple(index for index, events in enumerate(layout.mins) if event in events),
        maxs=tuple(index for index, events in enumerate(layout.maxs) if event in events),
        rings=tuple((index, ring.field) for index, ring in enumerate(layout.rings) if event in ring.events),
    )
    touched = (plan.counts, plan.valued, plan.values, plan.affinities, plan.mins, plan.maxs, plan.rings)
    return plan if any(touched) else None


def _sums(layout: EntityLayout, event: str, measure: str) -> tuple[tuple[int, float], ...]:
    return tuple(
        (index, slot.half_life_s)
        for index, slot in enumerate(layout.sums)
        if slot.measure == measure and event in slot.events
    )
