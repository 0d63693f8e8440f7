"""Orders of events that cannot be, and users that are probably programs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyre_quality.columns import Column, as_ids, as_numbers, as_shared_ids, lengths
from gyre_quality.completeness import MAD_TO_DEVIATION, joint
from gyre_quality.report import Check, Rows


@dataclass(frozen=True, slots=True)
class Shown:
    """Items as they were shown: columns of equal length; times in unix seconds.

    A request is named by user and id: two users may have one id.
    """

    users: Column
    request_ids: Column
    items: Column
    times: Column


@dataclass(frozen=True, slots=True)
class InteractionColumns:
    """What users did with them: columns of equal length; times in unix seconds."""

    users: Column
    request_ids: Column
    items: Column
    times: Column


def check_sequences(
    shown: Shown, interactions: InteractionColumns, *, tolerance_s: float = 1.0, max_share: float = 0.0
) -> tuple[Check, Check]:
    """Two checks: interactions before their impression, and those with what the named request never showed their user.

    In this order. Interactions that name no request (imported history, direct producers) are left out.

    Args:
        shown: all impressions that the interactions may refer to.
        interactions: the interactions; rows of the checks are theirs.
        tolerance_s: how far clocks of browser and server may disagree.
        max_share: of the interactions that name a request.
    """
    keys, known = _shared_keys(shown, interactions)
    shown_keys, interaction_keys = keys
    order = np.argsort(shown_keys, kind="stable")
    # The earliest exposure counts where one request shows an item twice.
    unique, start = np.unique(shown_keys[order], return_index=True)
    first = np.minimum.reduceat(as_numbers(shown.times, "times")[order], start) if unique.size else np.empty(0)
    at = np.minimum(np.searchsorted(unique, interaction_keys), max(unique.size - 1, 0))
    found = unique[at] == interaction_keys if unique.size else np.zeros(interaction_keys.size, dtype=bool)
    times = as_numbers(interactions.times, "times")[known]
    early = np.zeros(interaction_keys.size, dtype=bool)
    early[found] = times[found] < first[at[found]] - tolerance_s
    total = max(known.size, 1)
    before, unshown = known[early], known[~found]
    return (
        _share_check("sequence.before_impression", before, total, max_share),
        _share_check("sequence.never_shown", unshown, total, max_share),
    )


@dataclass(frozen=True, slots=True)
class BotRule:
    """When a user is probably a program.

    Attributes:
        max_z: robust standard deviations of the logarithm of a user's busiest minute above the median user's.
        min_events: users with fewer events are never judged.
        min_gap_variation: the median absolute deviation of the gaps between a user's events over their median; people
            are irregular, timers are not.
        min_rate_per_minute: the busiest minute below which nobody is called a bot, however slow the others are.
    """

    max_z: float = 6.0
    min_events: int = 20
    min_gap_variation: float = 0.05
    min_rate_per_minute: int = 30


@dataclass(frozen=True, slots=True)
class UserBehaviour:
    """What each user's events look like, one entry for each user that has events.

    Attributes:
        users: the code of the user, as `as_ids` numbers the column.
        events: how many.
        busiest_minute: most events within any clock minute.
        gap_variation: see `BotRule`; infinite where there are too few gaps.
    """

    users: NDArray[np.int64]
    events: NDArray[np.int64]
    busiest_minute: NDArray[np.int64]
    gap_variation: NDArray[np.float64]


def check_bots(users: Column, times: Column, *, rule: BotRule | None = None, max_share: float = 0.0) -> Check:
    """The check on the share of events that come from bot-like users, with all rows of these users; removes none.

    Args:
        users: ids [rows]; rows without one are left out.
        times: unix seconds [rows].
        rule: what bot-like means.
        max_share: of events.
    """
    rule = rule or BotRule()
    lengths({"users": users, "times": times})
    codes = as_ids(users)
    seen = behaviour(codes, as_numbers(times, "times").astype(np.float64))
    suspects = seen.users[bot_like(seen, rule)]
    rows = np.flatnonzero(np.isin(codes, suspects))
    share = rows.size / max(int(np.count_nonzero(codes >= 0)), 1)
    detail = f"{suspects.size} of {seen.users.size} users are too fast or too regular"
    return Check("bots", "", share, max_share, share <= max_share, detail, rows)


def behaviour(users: NDArray[np.int64], times: NDArray[np.float64]) -> UserBehaviour:
    """Each user's pace, by increasing code.

    Args:
        users: codes of `as_ids` [rows]; rows with one below 0 are left out.
        times: unix seconds [rows], in any order; rows without one are left out.
    """
    known = (users >= 0) & np.isfinite(times)
    users, times = users[known], times[known]
    order = np.lexsort((times, users))
    users, times = users[order], times[order]
    distinct, events = np.unique(users, return_counts=True)
    minutes, counts = np.unique(joint([users, _minutes(times)]), return_index=True, return_counts=True)[1:]
    busiest = np.zeros(distinct.size, dtype=np.int64)
    np.maximum.at(busiest, np.searchsorted(distinct, users[minutes]), counts)
    same = users[1:] == users[:-1]
    gaps, owners = np.diff(times)[same], np.repeat(np.arange(distinct.size), events)[1:][same]
    middle = _group_median(gaps, owners, distinct.size)
    away = _group_median(np.abs(gaps - middle[owners]), owners, distinct.size)
    # Events at one instant have no pace of their own: a page that sends its clicks in one go is no timer.
    paced = np.isfinite(middle) & (middle > 0)
    variation = np.divide(away, middle, out=np.full(distinct.size, np.inf), where=paced)
    return UserBehaviour(distinct, events, busiest, variation)


def bot_like(seen: UserBehaviour, rule: BotRule) -> NDArray[np.bool_]:
    """Which entries of `seen` are too fast for their peers or too regular for a person, bool [users]."""
    logs = np.log(np.maximum(seen.busiest_minute, 1))
    middle = np.median(logs) if logs.size else 0.0
    # Half of all users may have the same small count: a spread of 0 would make everybody else an outlier.
    spread = max(MAD_TO_DEVIATION * float(np.median(np.abs(logs - middle))) if logs.size else 0.0, 0.25)
    fast = ((logs - middle) / spread > rule.max_z) & (seen.busiest_minute >= rule.min_rate_per_minute)
    regular = seen.gap_variation < rule.min_gap_variation
    return np.asarray((seen.events >= rule.min_events) & (fast | regular))


def _shared_keys(shown: Shown, interactions: InteractionColumns) -> tuple[tuple[Rows, Rows], Rows]:
    """Users' requests and items of both tables numbered alike, and the rows of interactions that name all."""
    size = len(shown.request_ids)
    pairs = (
        (shown.users, interactions.users),
        (shown.request_ids, interactions.request_ids),
        (shown.items, interactions.items),
    )
    numbers = [np.concatenate(as_shared_ids(*pair)) for pair in pairs]
    whole = np.logical_and.reduce([each >= 0 for each in numbers])
    known = np.flatnonzero(whole[size:])
    keys = joint([np.maximum(each, 0) for each in numbers])
    # An impression without request or item is one that nothing can refer to.
    keys[:size][~whole[:size]] = -1
    return (keys[:size], keys[size:][known]), known


def _minutes(times: NDArray[np.float64]) -> NDArray[np.int64]:
    minutes = np.floor_divide(times, 60).astype(np.int64)
    return np.asarray(minutes - minutes.min(initial=0))


def _group_median(values: NDArray[np.float64], groups: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """The lower median of each group's values; infinite for a group without any."""
    result = np.full(size, np.inf)
    order = np.lexsort((values, groups))
    present, start, counts = np.unique(groups[order], return_index=True, return_counts=True)
    result[present] = values[order][start + (counts - 1) // 2]
    return result


def _share_check(name: str, rows: Rows, total: int, limit: float) -> Check:
    share = rows.size / total
    return Check(name, "", share, limit, share <= limit, f"{rows.size} of {total} interactions", rows)
