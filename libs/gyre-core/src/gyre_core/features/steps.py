"""One step for each feature kind: writes its columns of the matrix from a decoded frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from gyre_core.features.comparing import comparison
from gyre_core.features.compiling import DecayedFeature, events_key, first_slots, plain_slots, ring_of
from gyre_core.features.events import ENTITY_KINDS
from gyre_core.features.frame import F32, F64, EntityBlock, Frame, Step
from gyre_core.features.identity import item_hash
from gyre_core.features.layout import Layout
from gyre_core.features.slots import EntityLayout
from gyre_core.features.smoothing import smoothed_rate
from gyre_core.features.windowing import windowed_steps
from gyre_core.float32 import FLOAT32_MAX
from gyre_core.spec import (
    AffinityFeature,
    AgeFeature,
    ContextFeature,
    DatePart,
    DecayedCountFeature,
    DecayedMeanFeature,
    DecayedRateFeature,
    DiversityFeature,
    Feature,
    FieldFeature,
    HistoryFeature,
    PositionFeature,
    RankFeature,
    SmoothedRateFeature,
    VectorFeature,
    ZScoreFeature,
)

IntP = npt.NDArray[np.intp]
_DAY_S = 86_400.0


def compile_steps(layout: Layout) -> list[Step]:
    """The steps that fill a matrix, in the order to run them: some read columns that earlier ones wrote."""
    bulk = [*_copies(layout), *_ratios(layout), *windowed_steps(layout), *_ages(layout)]
    return bulk + [step for feature in layout.features if (step := _single(layout, feature)) is not None]


def _single(layout: Layout, feature: Feature) -> Step | None:
    step: Step | None = None
    match feature:
        case DecayedCountFeature(by=str(by)) | DecayedMeanFeature(by=str(by)) | DecayedRateFeature(by=str(by)):
            step = _by_category(layout, feature, by)
        case AffinityFeature():
            step = _affinity(layout, feature)
        case FieldFeature() if not _is_copied(feature):
            step = _date_parts(layout, feature) if feature.parts else _place(layout, feature)
        case HistoryFeature():
            step = _history(layout, feature)
        case SmoothedRateFeature():
            step = smoothed_rate(layout, feature)
        case VectorFeature(with_=str(other)):
            step = _similarity(layout, feature, other)
        case _:
            step = _of_request(layout, feature)
    return step


def _of_request(layout: Layout, feature: Feature) -> Step | None:
    if isinstance(feature, RankFeature | ZScoreFeature | PositionFeature | DiversityFeature):
        return comparison(layout, feature)
    if isinstance(feature, ContextFeature):
        return _labels(layout, feature) if feature.values else _context(feature, layout.index[feature.name])
    return None


def _copies(layout: Layout) -> Iterator[Step]:
    """Counts and fields are plain copies: one fancy assignment for all of a scope."""
    for scope in ENTITY_KINDS:
        entity = layout.slots(scope)
        sums: dict[int, int] = {}
        lasts: dict[int, int] = {}
        for feature in layout.features:
            columns = layout.columns_of(feature)
            if isinstance(feature, DecayedCountFeature) and feature.scope == scope and feature.by is None:
                slots = [entity.sums.index(plain_slots(feature, each.seconds)[0]) for each in feature.half_lives]
                sums.update(zip(columns, slots, strict=True))
            elif isinstance(feature, FieldFeature | VectorFeature) and feature.scope == scope and _is_copied(feature):
                slot = entity.field(feature.field)
                lasts.update(zip(columns, range(slot.first, slot.first + slot.count), strict=True))
        if sums:
            yield _copy("sums", scope, sums)
        if lasts:
            yield _copy("lasts", scope, lasts)


def _is_copied(feature: FieldFeature | VectorFeature) -> bool:
    if isinstance(feature, VectorFeature):
        return feature.with_ is None
    return not feature.parts and feature.encoding == "one_hot"


def _copy(region: str, scope: str, slots: dict[int, int]) -> Step:
    to, of = np.array(list(slots)), np.array(list(slots.values()))

    def step(frame: Frame, out: F32) -> None:
        out[:, to] = getattr(frame.block(scope), region)[:, of]

    return step


def _ratios(layout: Layout) -> Iterator[Step]:
    """Rates and means are (numerator + prior) / (denominator + weight), all of a scope at once."""
    for scope in ENTITY_KINDS:
        found = [
            row
            for feature in layout.features
            if isinstance(feature, DecayedRateFeature | DecayedMeanFeature)
            and (feature.scope, feature.by) == (scope, None)
            for row in _ratio_rows(layout, feature)
        ]
        if found:
            yield _ratio(scope, found)


def _ratio_rows(
    layout: Layout, feature: DecayedRateFeature | DecayedMeanFeature
) -> Iterator[tuple[int, int, int, float, float]]:
    sums = layout.slots(feature.scope).sums
    for column, each in zip(layout.columns_of(feature), feature.half_lives, strict=True):
        above, below = plain_slots(feature, each.seconds)
        prior = feature.prior
        yield column, sums.index(above), sums.index(below), prior.mean * prior.weight, prior.weight


def _ratio(scope: str, rows: list[tuple[int, int, int, float, float]]) -> Step:
    to, above, below = (np.array([row[part] for row in rows]) for part in range(3))
    pseudo, weight = (np.array([row[part] for row in rows]) for part in (3, 4))

    def step(frame: Frame, out: F32) -> None:
        sums = frame.block(scope).sums
        out[:, to] = (sums[:, above] + pseudo) / (sums[:, below] + weight)

    return step


def _affinity(layout: Layout, feature: AffinityFeature) -> Step:
    entity, slot = layout.slots("user"), layout.slots("item").field(feature.field)
    to = np.array(layout.columns_of(feature))
    of = _category_sums(entity, feature, slot.count)[:, 0]

    def step(frame: Frame, out: F32) -> None:
        weights = frame.user.sums[0, of]
        totals = weights.sum(axis=1, keepdims=True)
        shares = np.divide(weights, totals, out=np.zeros_like(weights), where=totals > 0)
        out[:, to] = frame.items.lasts[:, slot.first : slot.first + slot.count] @ shares.T

    return step


def _category_sums(entity: EntityLayout, feature: AffinityFeature | DecayedFeature, count: int) -> IntP:
    """The indices of a feature's sums by category, of shape [half-lives, slots of a category, categories]."""
    firsts = [[entity.sums.index(slot) for slot in first_slots(feature, each.seconds)] for each in feature.half_lives]
    found: IntP = np.array(firsts)[:, :, None] + np.arange(count)
    return found


def _by_category(layout: Layout, feature: DecayedFeature, by: str) -> Step:
    """The mean over the candidate's categories; a candidate without any gets what no event gives."""
    to, scope, slot = np.array(layout.columns_of(feature)), feature.scope, layout.slots("item").field(by)
    of = _category_sums(layout.slots(scope), feature, slot.count)
    prior = None if isinstance(feature, DecayedCountFeature) else feature.prior
    missing = prior.mean if prior else 0.0

    def step(frame: Frame, out: F32) -> None:
        sums = frame.block(scope).sums[0, of]
        found = sums[:, 0]
        if prior:
            found = (found + prior.mean * prior.weight) / (sums[:, 1] + prior.weight)
        held = frame.items.lasts[:, slot.first : slot.first + slot.count]
        counts = held.sum(axis=1, keepdims=True)
        out[:, to] = np.where(counts > 0, held @ found.T / np.maximum(counts, 1.0), missing)

    return step


def _ages(layout: Layout) -> Iterator[Step]:
    """Days since the times of entities, those of events before those of fields: one step for all of a scope."""
    for scope in ENTITY_KINDS:
        found = [each for each in layout.features if isinstance(each, AgeFeature) and each.scope == scope]
        if found:
            yield _age(layout, sorted(found, key=lambda feature: feature.field is not None))


def _age(layout: Layout, features: Sequence[AgeFeature]) -> Step:
    scope, entity = features[0].scope, layout.slots(features[0].scope)
    to, defaults = [layout.index[each.name] for each in features], np.array([each.default for each in features])
    events = np.array([_time_slot(entity, each) for each in features if each.field is None], dtype=np.intp)
    firsts = np.array([entity.field(each.field).first for each in features if each.field], dtype=np.intp)

    def step(frame: Frame, out: F32) -> None:
        block = frame.block(scope)
        times = block.times[:, events]
        if len(firsts):
            times = np.concatenate([times, _field_times(block, firsts)], axis=1)
        age = (frame.context.time - times) / _DAY_S
        out[:, to] = np.where(np.isfinite(age), np.maximum(age, 0.0), defaults)

    return step


def _time_slot(entity: EntityLayout, feature: AgeFeature) -> int:
    events = events_key(feature.events)
    return entity.mins.index(events) if feature.of == "first_event" else len(entity.mins) + entity.maxs.index(events)


def _place(layout: Layout, feature: FieldFeature) -> Step:
    """The place of a category in its list, from 1 on; 0 for none."""
    slot, scope, to = layout.slots(feature.scope).field(feature.field), feature.scope, layout.index[feature.name]
    places = np.arange(1, slot.count + 1, dtype=np.float32)

    def step(frame: Frame, out: F32) -> None:
        out[:, to] = frame.block(scope).lasts[:, slot.first : slot.first + slot.count] @ places

    return step


_PARTS: dict[DatePart, Callable[[npt.NDArray[np.datetime64]], npt.NDArray[np.int64]]] = {
    "year": lambda times: times.astype("datetime64[Y]").astype(np.int64) + 1970,
    "month": lambda times: times.astype("datetime64[M]").astype(np.int64) % 12 + 1,
    # 1970-01-01 was a Thursday, day 3 when Monday is 0.
    "weekday": lambda times: (times.astype("datetime64[D]").astype(np.int64) + 3) % 7,
    "hour": lambda times: times.astype("datetime64[h]").astype(np.int64) % 24,
}
_FARTHEST_S = 1e12
"""What a calendar is asked for at most, some 30,000 years from 1970."""


def _date_parts(layout: Layout, feature: FieldFeature) -> Step:
    scope, to = feature.scope, layout.columns_of(feature)
    first = np.array([layout.slots(scope).field(feature.field).first])

    def step(frame: Frame, out: F32) -> None:
        times = _field_times(frame.block(scope), first)[:, 0]
        seconds = np.floor(np.clip(times, -_FARTHEST_S, _FARTHEST_S)).astype(np.int64).view("datetime64[s]")
        for column, part in zip(to, feature.parts, strict=True):
            out[:, column] = np.where(np.isfinite(times), _PARTS[part](seconds), -1)

    return step


def _field_times(block: EntityBlock, firsts: IntP) -> F64:
    """A time is stored as two float32 whose sum is the time."""
    found: F64 = block.lasts[:, firsts].astype(np.float64) + block.lasts[:, firsts + 1]
    return found


def _history(layout: Layout, feature: HistoryFeature) -> Step:
    ring = layout.slots("user").rings.index(ring_of(feature))
    seen_to, *overlap_to = layout.columns_of(feature)
    slot = layout.slots("item").field(feature.field) if feature.field else None
    bits = np.left_shift(np.uint64(1), np.arange(slot.count if slot else 0, dtype=np.uint64))

    def step(frame: Frame, out: F32) -> None:
        entries = frame.rings[ring] if frame.rings else []
        seen = {entry[1] for entry in entries}
        found = map(seen.__contains__, map(item_hash, frame.item_ids))
        out[:, seen_to] = np.fromiter(found, dtype=np.bool_, count=len(frame.item_ids)) if seen else 0.0
        if slot is None:
            return
        if not entries:
            out[:, overlap_to[0]] = 0.0
            return
        held = frame.items.lasts[:, slot.first : slot.first + slot.count] > 0
        masks = held @ bits
        known = np.array([entry[2] for entry in entries], dtype=np.uint64)
        out[:, overlap_to[0]] = (masks[:, None] & known).astype(bool).sum(axis=1) / len(known)

    return step


def _similarity(layout: Layout, feature: VectorFeature, other: str) -> Step:
    """The cosine or dot product of each candidate's vector and the user's; 0 where one of them is unknown."""
    item, user, to = (
        layout.slots("item").field(feature.field),
        layout.slots("user").field(other),
        layout.index[feature.name],
    )
    cosine = feature.measure == "cosine"

    def step(frame: Frame, out: F32) -> None:
        theirs = frame.items.lasts[:, item.first : item.first + item.count].astype(np.float64)
        own = frame.user.lasts[0, user.first : user.first + user.count].astype(np.float64)
        found = theirs @ own
        if cosine:
            norms = np.sqrt(np.einsum("ij,ij->i", theirs, theirs) * (own @ own))
            found = np.divide(found, norms, out=np.zeros_like(found), where=norms > 0)
        out[:, to] = np.clip(found, -FLOAT32_MAX, FLOAT32_MAX)

    return step


def _labels(layout: Layout, feature: ContextFeature) -> Step:
    """One column for each declared value; of any other label, or none, all are 0."""
    to, rows = layout.columns_of(feature), np.eye(len(feature.values), dtype=np.float32)
    row_of = dict(zip(feature.values, rows, strict=True))
    nothing = np.zeros(len(to), dtype=np.float32)

    def step(frame: Frame, out: F32) -> None:
        out[:, to] = row_of.get(frame.context.labels.get(feature.field, ""), nothing)

    return step


def _context(feature: ContextFeature, to: int) -> Step:
    def step(frame: Frame, out: F32) -> None:
        time, numbers = frame.context.time, frame.context.numbers
        if feature.field == "hour":
            value = time % _DAY_S // 3600
        elif feature.field == "weekday":
            # 1970-01-01 was a Thursday, day 3 when Monday is 0.
            value = (time // _DAY_S + 3) % 7
        else:
            value = numbers.get(feature.field, feature.default)
        # False for NaN, too. The gateway refuses such a number; an impression of a producer's own may hold one.
        out[:, to] = value if abs(value) <= FLOAT32_MAX else feature.default

    return step
