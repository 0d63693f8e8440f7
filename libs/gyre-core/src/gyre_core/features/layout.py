"""A loop's feature layout: its columns, its slots, and the hash that names both for ever."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

from gyre_core.features.compiling import compile_kind, field_of, kinds_of
from gyre_core.features.events import ENTITY_KINDS, EntityKind
from gyre_core.features.plans import Plan, plan_for
from gyre_core.features.slots import HEADER_BYTES, EntityLayout
from gyre_core.features.state import unpack_rings
from gyre_core.features.versions import ItemFields
from gyre_core.spec import IMPRESSION, Feature, LoopSpec, feature_columns
from gyre_core.spec.model import SpecModel

_HASHED_FORMAT = 1
"""Part of every hash. How values are packed is not, so models keep theirs: see `gyre_core.keys.STORE_FORMAT`."""
_DAY_S = 86_400.0
_DEFAULT_TTL_S = 365 * _DAY_S
_HALF_LIVES_RETAINED = 10.0
_WINDOWS_RETAINED = 2.0
_ADDED: dict[str, Any] = {"by": None, "encoding": "one_hot", "parts": [], "buckets": None}
"""What feature and field kinds got later, and what it was before."""
_ADDED_TO: dict[str, dict[str, Any]] = {"context": {"values": []}}
"""The same of single kinds."""


@dataclass(frozen=True, slots=True)
class Column:
    """An output column: its feature's name and kind, and the scope (item, user, global or request) of what it reads."""

    name: str
    feature: str
    kind: str
    scope: str


@dataclass(frozen=True)
class Layout:
    """What `gyre.yaml` declares as features, compiled; immutable.

    Attributes:
        described: the output columns in order.
        entities: the slots of each kind of entity.
        hash: 16 hex digits; under one hash, stored values and columns mean the same.
        model_columns: the names of the columns that the spec's model reads, in the order in which it reads them.
        events: the event types that features count, impressions included, in the order of packed contributions.
    """

    loop: str
    features: tuple[Feature, ...]
    described: tuple[Column, ...]
    entities: Mapping[EntityKind, EntityLayout]
    hash: str
    model_columns: tuple[str, ...]
    events: tuple[str, ...]
    max_lateness_s: float
    max_field_lateness_s: float

    @classmethod
    def compile(cls, spec: LoopSpec) -> Layout:
        """The layout of a loop whose spec is checked (`load_loop`)."""
        described = tuple(
            Column(name, feature.name, feature.kind, getattr(feature, "scope", "request"))
            for feature in spec.features
            for name in feature_columns(feature, spec.fields)
        )
        entities = {kind: compile_kind(kind, spec) for kind in ENTITY_KINDS}
        return cls(
            loop=spec.loop,
            features=spec.features,
            described=described,
            entities=entities,
            hash=_hash_of(spec, described, entities),
            model_columns=spec.model_columns(),
            events=_events_of(spec.features),
            max_lateness_s=spec.max_lateness_s,
            max_field_lateness_s=spec.events.max_field_lateness_s,
        )

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the output columns in order."""
        return tuple(column.name for column in self.described)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """The position of each column by name."""
        return {name: position for position, name in enumerate(self.columns)}

    def columns_of(self, feature: Feature) -> list[int]:
        """The positions of a feature's columns, increasing; empty for one that the layout does not have."""
        return [position for position, column in enumerate(self.described) if column.feature == feature.name]

    @cached_property
    def model_indices(self) -> tuple[int, ...]:
        """The positions of `model_columns` among `columns`, in the order in which the model reads them."""
        return tuple(self.index[name] for name in self.model_columns)

    def slots(self, kind: EntityKind) -> EntityLayout:
        """The slots of one kind of entity."""
        return self.entities[kind]

    def plan(self, kind: EntityKind, event: str) -> Plan | None:
        """What an event type touches in one kind of entity; None for nothing, unknown types included."""
        return self._plans.get((kind, event))

    def plans(self, event: str) -> tuple[tuple[EntityKind, Plan], ...]:
        """What an event type touches, kind by kind; nothing for an unknown type."""
        return self._plans_by_event.get(event, ())

    @cached_property
    def item_fields(self) -> ItemFields:
        """Reads and packs what contributions need of items' fields."""
        plans = self._plans.values()
        fields = dict.fromkeys(field for plan in plans for field in plan.fields)
        return ItemFields(self.entities["item"], tuple(fields), self.events)

    @cached_property
    def _plans_by_event(self) -> dict[str, tuple[tuple[EntityKind, Plan], ...]]:
        return {
            event: tuple((kind, plan) for kind in ENTITY_KINDS if (plan := self.plan(kind, event)) is not None)
            for event in self.events
        }

    @cached_property
    def _plans(self) -> dict[tuple[EntityKind, str], Plan]:
        found = {(kind, event): plan_for(self.entities[kind], event) for kind in ENTITY_KINDS for event in self.events}
        return {key: plan for key, plan in found.items() if plan is not None}

    def ttl_s(self, kind: EntityKind) -> float | None:
        """How long a value of this kind outlives its last update, seconds; None means for ever, or that there is none.

        The longest of the kind's features counts. By default a decayed feature is kept for ten half-lives (a
        thousandth is left), a windowed one for two windows (nothing is left), other behaviour for a year; a stored
        field without a `ttl` of its own is kept for ever, because nobody sends it again.
        """
        return self._ttls[kind]

    @cached_property
    def _ttls(self) -> dict[EntityKind, float | None]:
        return {kind: self._ttl_of_kind(kind) for kind in ENTITY_KINDS}

    def _ttl_of_kind(self, kind: EntityKind) -> float | None:
        mine = [feature for feature in self.features if kind in kinds_of(feature)]
        bounded = {field_of(kind, feature) for feature in mine if getattr(feature, "ttl_s", None) is not None}
        if any(slot.name not in bounded for slot in self.entities[kind].fields):
            return None
        return max((_ttl_of(feature) for feature in mine), default=None)

    def history(self, user_value: bytes | None) -> list[tuple[float, int]]:
        """(event time in unix seconds, `item_hash`) of the user's longest history, newest first, items repeated.

        Empty where the user is unknown or no feature keeps a history. Raises ValueError where the value does not fit.
        """
        entity = self.entities["user"]
        if user_value is None or not entity.rings:
            return []
        rings = unpack_rings(entity, user_value)
        longest = max(range(len(rings)), key=lambda index: entity.rings[index].length)
        return [(entry[0], entry[1]) for entry in rings[longest]]


def _events_of(features: Iterable[Feature]) -> tuple[str, ...]:
    """The event types that features count: an order that stays while the loop gets other types."""
    named = {event for each in features for name in ("events", "per") for event in getattr(each, name, ())}
    return (*sorted(named - {IMPRESSION}), IMPRESSION)


def _ttl_of(feature: Feature) -> float:
    given: float | None = getattr(feature, "ttl_s", None)
    if given is not None:
        return given
    decayed = (each.seconds * _HALF_LIVES_RETAINED for each in getattr(feature, "half_lives", ()))
    windowed = (each.seconds * _WINDOWS_RETAINED for each in getattr(feature, "windows", ()))
    return max((*decayed, *windowed), default=_DEFAULT_TTL_S)


def _meaning_of(declared: SpecModel) -> dict[str, Any]:
    """A feature's or field's definition; what its kind got later counts only where it is used, so that hashes stay."""
    found: dict[str, Any] = declared.model_dump(mode="json", exclude={"ttl"})
    added = _ADDED | _ADDED_TO.get(found["kind"], {})
    return {key: value for key, value in found.items() if key not in added or value != added[key]}


def _hashed_program(entity: EntityLayout) -> dict[str, Any]:
    """The counts of each region, and the sizes that they had where sums were float32, as all hashes hold them."""
    floats = len(entity.sums) + entity.lasts + entity.bucket_starts[-1]
    pad_bytes = 4 * (floats % 2)
    fixed_bytes = HEADER_BYTES + 8 * entity.times + 4 * floats + pad_bytes
    return {**entity.program(), "pad_bytes": pad_bytes, "fixed_bytes": fixed_bytes}


def _hash_of(spec: LoopSpec, described: tuple[Column, ...], entities: Mapping[EntityKind, EntityLayout]) -> str:
    """16 hex digits over everything that decides what a stored value or a column means; not over how long it lives."""
    stored = {
        scope: {slot.name: _meaning_of(spec.fields(scope)[slot.name]) for slot in entities[scope].fields}
        for scope in ("item", "user")
    }
    definition: dict[str, Any] = {
        "format": _HASHED_FORMAT,
        "fields": stored,
        "features": [_meaning_of(feature) for feature in spec.features],
        "columns": [column.name for column in described],
        "programs": {kind: _hashed_program(entity) for kind, entity in entities.items()},
    }
    canonical = json.dumps(definition, sort_keys=True, separators=(",", ":"))
    return blake2b(canonical.encode(), digest_size=8).hexdigest()
