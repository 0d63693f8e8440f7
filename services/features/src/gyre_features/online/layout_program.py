"""What the apply script needs to know about a layout, made once: merge programs, TTLs, and where popularity stands."""

import json
from dataclasses import dataclass
from math import ceil

from gyre_core.features import ENTITY_KINDS, Layout
from gyre_core.spec import DecayedCountFeature, LoopSpec

LETTER = {"item": "i", "user": "u", "global": "g"}
"""The script's name of each kind of entity."""
_DAY_S = 86_400
_MIN_LEASE_S = 90 * _DAY_S


@dataclass(frozen=True, slots=True)
class Popularity:
    """Where an item's packed value has the decayed count that ranks popular items, and its category.

    Attributes:
        slot: index among the item's sums.
        half_life_s: of that sum.
        categories: values of the category field, in order; empty without one.
        first_category: index among the item's encoded field numbers.
    """

    slot: int
    half_life_s: float
    categories: tuple[str, ...]
    first_category: int


def popularity_of(spec: LoopSpec, layout: Layout) -> Popularity | None:
    """The count behind `serving.fallback_feature`; None when that is unset or not an item's decayed count."""
    column = spec.serving.fallback_feature
    feature = next(
        (each for each in spec.features if isinstance(each, DecayedCountFeature) and each.scope == "item"
         and column in {f"{each.name}_{half_life.text}" for half_life in each.half_lives}),
        None,
    )  # fmt: skip
    if feature is None:
        return None
    half_life = next(each for each in feature.half_lives if f"{feature.name}_{each.text}" == column)
    events = tuple(sorted(set(feature.events)))
    slots = layout.slots("item")
    at = next(
        index
        for index, slot in enumerate(slots.sums)
        if slot.measure == "count" and tuple(sorted(slot.events)) == events and slot.half_life_s == half_life.seconds
    )
    categories, first = _categories(spec, layout)
    return Popularity(at, half_life.seconds, categories, first)


def _categories(spec: LoopSpec, layout: Layout) -> tuple[tuple[str, ...], int]:
    name = spec.serving.recommend.genre_field
    stored = {field.name: field for field in layout.slots("item").fields}
    if name is None or name not in stored:
        return (), 0
    return stored[name].values, stored[name].first


def lease_s(layout: Layout) -> int:
    """How long a leased key outlives its last batch or renewal, seconds.

    Longer than any value with a time to live: applied offsets never go before what they keep from counting twice.
    """
    longest = max((layout.ttl_s(kind) or 0 for kind in ENTITY_KINDS), default=0)
    return max(_MIN_LEASE_S, ceil(longest) + _DAY_S)


def script_plan(spec: LoopSpec, layout: Layout, *, kept: int) -> str:
    """The apply script's first argument, JSON.

    `kept` is how many popular items it keeps, in all and for each category.
    """
    popular = popularity_of(spec, layout)
    plan: dict[str, object] = {
        "programs": {LETTER[kind]: layout.slots(kind).program() for kind in ENTITY_KINDS},
        "ttl": {LETTER[kind]: ceil(layout.ttl_s(kind) or lease_s(layout)) for kind in ENTITY_KINDS},
        "lease": lease_s(layout),
        "categories": len(popular.categories) if popular else 0,
    }
    if popular is not None:
        plan["popular"] = {
            "slot": popular.slot,
            "half_life_s": popular.half_life_s,
            "first_category": popular.first_category,
            "kept": kept,
            # All shards' prefixes are of one length only while shard numbers are: the worker sets `id_at` for each.
            "id_at": 0,
        }
    return json.dumps(plan)
