"""Checks of the tables as they were read: what is missing, impossible, repeated, late or made by programs.

They see what a training set is made of, at most the newest `quality.checks.max_events` interactions since its oldest
impression: the past beyond that is read for features only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from gyre_core.spec import LoopSpec
from gyre_privacy.detection import scanner
from gyre_quality.columns import as_codes, as_numbers
from gyre_quality.completeness import check_duplicates, check_freshness, check_missing, check_ranges, check_volume
from gyre_quality.report import Check
from gyre_quality.sequences import BotRule, InteractionColumns, Shown, check_bots, check_sequences

from gyre_trainer.training_set import Tables, newest_event_time

Rows = npt.NDArray[np.int64]
_US = 1_000_000
_MOST_PERIODS = 28
_MOST_ITEMS = 20_000
_MAX_UNREADABLE = 0.001


@dataclass(frozen=True)
class Subject:
    """Findings about rows of one kind: impressions, interactions, items, users, or shown items."""

    name: str
    checks: tuple[Check, ...]


def check_tables(spec: LoopSpec, tables: Tables, *, now: float) -> list[Subject]:
    """Check what was read; the checks' rows are those of the tables.

    Args:
        spec: the loop, with the thresholds.
        tables: what was read.
        now: the loop's time, unix seconds.
    """
    picked = _picked(spec, tables)
    acted = tables.interactions.take(pa.array(picked, pa.int64()))
    found = [*_impressions(spec, tables.impressions), *_freshness(spec, tables, now)]
    about = [
        *_completeness(spec, acted),
        *_volume(spec, acted, now),
        _duplicates(spec, acted, "interactions"),
        *_sequences(spec, tables.impressions, acted),
        _bots(spec, acted),
        *_ids(spec, acted),
    ]
    return [
        Subject("impressions", (*_unreadable(tables, "impressions"), *found)),
        Subject("interactions", (*_unreadable(tables, "interactions"), *_moved(about, picked))),
        Subject("items", (*_unreadable(tables, "items"), *_items(spec, tables.items))),
        Subject("users", (*_unreadable(tables, "users"), *_users(spec, tables.users))),
    ]


def _unreadable(tables: Tables, name: str) -> Iterator[Check]:
    """The share of a table's rows that no event can be made of; they were set aside already."""
    count, of = tables.unreadable.get(name, (0, 0))
    if of:
        share, detail = count / of, f"{count} of {of} rows cannot be read, and were set aside"
        yield Check("completeness.unreadable", name, share, _MAX_UNREADABLE, share <= _MAX_UNREADABLE, detail)


def seconds(table: pa.Table) -> npt.NDArray[np.float64]:
    """The event times, unix seconds."""
    times = table["event_time"].cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    return np.asarray(times.to_numpy() / _US, dtype=np.float64)


def _picked(spec: LoopSpec, tables: Tables) -> Rows:
    """The rows of the interactions that are checked, increasing."""
    times, most = seconds(tables.interactions), spec.quality.checks.max_events
    begin = seconds(tables.impressions).min() if tables.impressions.num_rows else -np.inf
    rows = np.flatnonzero(times >= begin)
    if rows.size > most:
        rows = np.sort(rows[np.argsort(times[rows], kind="stable")[-most:]])
    return rows


def _moved(checks: list[Check], rows: Rows) -> Iterator[Check]:
    """The checks of some rows as checks of the table that they were taken from."""
    for check in checks:
        yield replace(check, rows=rows[check.rows])


def _given(column: Any) -> Any:
    """The texts with null for empty ones, which is how protobuf says that there is none."""
    return pc.if_else(pc.equal(column, pa.scalar("")), pa.scalar(None, column.type), column)


def _missing(spec: LoopSpec, columns: dict[str, Any]) -> list[Check]:
    rule = spec.quality.checks.completeness
    return check_missing(columns, {name: rule.columns.get(name, rule.max_missing) for name in columns})


def _duplicates(spec: LoopSpec, table: pa.Table, name: str) -> Check:
    most = spec.quality.checks.duplicates.max_share
    check = check_duplicates({"source": table["source"], "event_id": table["event_id"]}, max_share=most)
    return replace(check, column=f"{name}.event_id")


def _impressions(spec: LoopSpec, table: pa.Table) -> list[Check]:
    users = {"impressions.user_id": _given(table["user_id"])}
    return [*_missing(spec, users), _duplicates(spec, table, "impressions")]


def _freshness(spec: LoopSpec, tables: Tables, now: float) -> list[Check]:
    newest = newest_event_time(tables.impressions, tables.interactions)
    if not newest:
        return []
    return [check_freshness([newest], now, spec.quality.checks.freshness.max_age.seconds)]


def _completeness(spec: LoopSpec, acted: pa.Table) -> list[Check]:
    """Missing ids, and values that are missing or outside the range that their type declares."""
    checks = _missing(spec, {f"interactions.{name}": _given(acted[name]) for name in ("user_id", "item_id")})
    for kind, declared in spec.events.interactions.items():
        if declared.value is None:
            continue
        rows = np.flatnonzero(np.asarray(acted["type"].to_pylist(), dtype=object) == kind)
        values = {"interactions.value": acted["value"].take(pa.array(rows, pa.int64()))}
        limits = {"interactions.value": (declared.value.min, declared.value.max)}
        most = spec.quality.checks.ranges.max_share
        found = [*_missing(spec, values), *check_ranges(values, limits, max_share=most)]
        checks += [replace(check, column=f"{check.column}.{kind}") for check in _moved(found, rows)]
    return checks


def _volume(spec: LoopSpec, acted: pa.Table, now: float) -> list[Check]:
    """The newest period against those before that are whole; nothing where there are fewer than three."""
    rule, times = spec.quality.checks.volume, seconds(acted)
    ages = np.floor((now - times[times <= now]) / rule.period.seconds).astype(np.int64)
    counts = np.bincount(ages[ages <= _MOST_PERIODS + 1]) if ages.size else np.zeros(1, dtype=np.int64)
    whole = counts[1:-1]
    return [check_volume(int(counts[0]), whole, max_z=rule.max_z)] if whole.size >= 3 else []


def _sequences(spec: LoopSpec, impressions: pa.Table, acted: pa.Table) -> list[Check]:
    """Impossible orders, among the interactions whose impression was read if there is one."""
    if not impressions.num_rows:
        return []
    rule, times = spec.quality.checks.sequences, seconds(impressions)
    begin = times.min() + spec.training.label.attribution_window_s
    moments = seconds(acted)
    rows = np.flatnonzero((moments >= begin) & (moments <= times.max()))
    judged = acted.take(pa.array(rows, pa.int64()))
    users, requests, items = (_given(judged[name]) for name in ("user_id", "request_id", "item_id"))
    names = InteractionColumns(users, requests, items, moments[rows])
    tolerance_s = rule.tolerance.seconds
    checks = check_sequences(_shown(impressions, times), names, tolerance_s=tolerance_s, max_share=rule.max_share)
    return list(_moved(list(checks), rows))


def _shown(impressions: pa.Table, times: npt.NDArray[np.float64]) -> Shown:
    """Each shown item on a row of its own; the sample of those not shown, which follows them, is left out."""
    lengths = np.nan_to_num(as_numbers(pc.list_value_length(impressions["item_ids"]))).astype(np.int64)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    positions = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    shown = np.nan_to_num(as_numbers(impressions["shown"])).astype(np.int64)
    kept = np.flatnonzero((positions < shown[owners]) | (shown[owners] == 0))
    owned = owners[kept]
    rows = pa.array(owned, pa.int64())
    users, requests = (_given(impressions[name]).take(rows) for name in ("user_id", "request_id"))
    items = pc.list_flatten(impressions["item_ids"]).take(pa.array(kept, pa.int64()))
    return Shown(users, requests, items, times[owned])


def _bots(spec: LoopSpec, acted: pa.Table) -> Check:
    rule = spec.quality.checks.bots
    bots = BotRule(min_rate_per_minute=rule.min_per_minute)
    return check_bots(_given(acted["user_id"]), seconds(acted), rule=bots, max_share=rule.max_share)


def _items(spec: LoopSpec, items: pa.Table) -> Iterator[Check]:
    """The fields that the checks name, in the newest changes of the catalogue."""
    checks = spec.quality.checks
    complete, ranges = checks.completeness.of_items, checks.ranges.of_items
    personal = checks.personal_data.of("items")
    if not (complete or ranges or personal):
        return
    fields = _newest_fields(items)
    yield from _missing(spec, {f"items.{name}": [_value(each, name) for each in fields] for name in complete})
    numbers = {f"items.{name}": np.array([_number(each, name) for each in fields]) for name in ranges}
    limits = {f"items.{name}": (each.min, each.max) for name, each in ranges.items()}
    yield from check_ranges(numbers, limits, max_share=checks.ranges.max_share)
    for name in personal:
        yield _personal_data(spec, f"items.{name}", [_value(each, name) for each in fields])


def _users(spec: LoopSpec, users: pa.Table | None) -> Iterator[Check]:
    """Personal data in the fields that the check names, in the newest changes of users."""
    names = spec.quality.checks.personal_data.of("users")
    if names and users is not None:
        fields = _newest_fields(users)
        for name in names:
            yield _personal_data(spec, f"users.{name}", [_value(each, name) for each in fields])


def _ids(spec: LoopSpec, acted: pa.Table) -> Iterator[Check]:
    """Personal data in ids: every row of one that holds some is at fault."""
    for name in spec.quality.checks.personal_data.of("interactions"):
        codes, ids = as_codes(acted[name])
        found = _personal_data(spec, f"interactions.{name}", ids)
        rows = np.flatnonzero(np.isin(codes, found.rows))
        yield replace(found, rows=rows)


def _newest_fields(table: pa.Table) -> list[dict[str, Any]]:
    newest = table.sort_by([("kafka_offset", "descending")]).slice(0, _MOST_ITEMS)
    texts: list[Any] = newest["fields"].to_pylist()
    return [json.loads(text).get("fields", {}) for text in texts]


def _personal_data(spec: LoopSpec, column: str, texts: Sequence[Any]) -> Check:
    """How many of the first texts hold personal data."""
    rule = spec.quality.checks.personal_data
    search, some = scanner(regions=spec.privacy.regions or None), texts[: rule.sample]
    rows = np.array([row for row, text in enumerate(some) if search.scan(str(text or ""))], dtype=np.int64)
    share, detail = rows.size / max(len(some), 1), f"{rows.size} of {len(some)} hold personal data"
    return Check("personal_data", column, share, rule.max_share, share <= rule.max_share, detail, rows)


def _value(fields: dict[str, Any], name: str) -> Any:
    """A field of an archived `ItemChanged`; None where it is missing or an empty text."""
    value = next(iter(fields.get(name, {}).values()), None)
    return None if value == "" else value


def _number(fields: dict[str, Any], name: str) -> float:
    return float(fields.get(name, {}).get("number", "nan"))
