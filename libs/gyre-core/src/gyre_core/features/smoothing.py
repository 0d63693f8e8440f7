"""Rates smoothed by a Beta prior that is learnt, as events come, from how much items or users differ.

Everything that it is learnt from is a decayed sum in the value of the loop as a whole, so it does not depend on the
order of events or on batches, and stream, read and replay learn the same. The items' k of n events are summed in a few
groups, by a hash of the item's id; the squares of those sums, less what the cross terms are worth at random, estimate
the squares of the single items (the idea of Alon, Matias and Szegedy, STOC 1996). How far the k are scattered about
their mean, beyond what chance explains, gives the prior's weight by the method of moments (Kleinman, JASA 1973).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gyre_core.features.compiling import group_slots, plain_slots, squares_slot
from gyre_core.features.frame import F32, F64, Frame, Step
from gyre_core.features.layout import Layout
from gyre_core.features.slots import ID_GROUPS, EntityLayout
from gyre_core.spec import PRIOR_BUCKETS, Prior, SmoothedRateFeature

MIN_WEIGHT, MAX_WEIGHT = 1.0, 10_000.0
"""Between what the learnt weight of a prior stays, in events."""
_MIN_VARIANCE = 1e-6
IntP = npt.NDArray[np.intp]


def learnt_prior(above: F64, below: F64, squares: F64, prior: Prior) -> tuple[F64, F64]:
    """Mean (0 to 1) and weight (in events) of the Beta prior of a rate, each of shape [m] for m half-lives.

    With a prior of weight w the k of an item with n events of its own have the variance
    `mean (1 - mean) (q + (n^2 - q) / (1 + w))`, q being the sum of the squared weights of its events. What is declared
    as `prior` counts as much as chance leaves open, and so ever less.

    Args:
        above: decayed events by group, shape [m, groups].
        below: decayed `per` events by group, shape [m, groups].
        squares: the sum of the squared weights of all `per` events, shape [m].
        prior: what is declared.
    """
    events = below.sum(axis=1)
    mean = np.clip((above.sum(axis=1) + prior.mean * prior.weight) / (events + prior.weight), 0.0, 1.0)
    variance = np.maximum(mean * (1.0 - mean), _MIN_VARIANCE)
    scattered = _sum_of_squares(above - mean[:, None] * below) / variance
    pairs = np.maximum(_sum_of_squares(below) - squares, 0.0)
    declared = 1.0 / (1.0 + prior.weight)
    # The scatter has the variance `squares / variance` by chance alone; 1e-9 stands for having seen nothing.
    chance = squares / variance / declared**2 + 1e-9
    correlation = ((scattered - squares) * pairs + declared * chance) / (pairs**2 + chance)
    weight = 1.0 / np.clip(correlation, 1.0 / (1.0 + MAX_WEIGHT), 1.0 / (1.0 + MIN_WEIGHT)) - 1.0
    return mean, weight


def _sum_of_squares(groups: F64) -> F64:
    """Over the items, the sum of the squares of what is summed by group: without bias, over the ways to group them."""
    count = groups.shape[1]
    found: F64 = ((groups**2).sum(axis=1) - groups.sum(axis=1) ** 2 / count) * (count / (count - 1))
    return found


def smoothed_rate(layout: Layout, feature: SmoothedRateFeature) -> Step:
    """The step of a smoothed rate: (events + mean * weight) / (`per` events + weight), a column for each half-life."""
    to = np.array(layout.columns_of(feature))
    own, everyone, prior = layout.slots(feature.scope), layout.slots("global"), feature.prior
    plain = _indices(own, feature)
    groups = _side_by_side(everyone, feature, ID_GROUPS[feature.scope], PRIOR_BUCKETS)
    squares = np.array([everyone.sums.index(squares_slot(feature, each.seconds)) for each in feature.half_lives])
    by = layout.slots("item").field(feature.by) if feature.by else None
    categories = _side_by_side(everyone, feature, by.name, by.count) if by else groups

    def step(frame: Frame, out: F32) -> None:
        total = frame.everyone.sums[0]
        mean, weight = learnt_prior(total[groups[:, 0]], total[groups[:, 1]], total[squares], prior)
        if by is not None:
            held = frame.items.lasts[:, by.first : by.first + by.count]
            above, below = held @ total[categories[:, 0]].T, held @ total[categories[:, 1]].T
            mean = (above + mean * weight) / (below + weight)
        sums = frame.block(feature.scope).sums
        out[:, to] = (sums[:, plain[:, 0]] + mean * weight) / (sums[:, plain[:, 1]] + weight)

    return step


def _indices(entity: EntityLayout, feature: SmoothedRateFeature) -> IntP:
    """Where the entity's own sums stand, of shape [half-lives, numerator and denominator]."""
    slots = (plain_slots(feature, each.seconds) for each in feature.half_lives)
    return np.array([[entity.sums.index(slot) for slot in pair] for pair in slots])


def _side_by_side(everyone: EntityLayout, feature: SmoothedRateFeature, field: str, count: int) -> IntP:
    """Where the sums by group or category stand, of shape [half-lives, numerator and denominator, count]."""
    slots = (group_slots(feature, each.seconds, field) for each in feature.half_lives)
    firsts = np.array([[everyone.sums.index(slot) for slot in pair] for pair in slots])
    found: IntP = firsts[:, :, None] + np.arange(count)
    return found
