"""The data-quality gate: each check on made tables, each action, and a poisoned warehouse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec, QualitySpec
from gyre_trainer.adapters.tables import LoopTables
from gyre_trainer.domain import Task, TrainingRefused
from gyre_trainer.quality.examples import Before, check_examples, drift_since, reference_files
from gyre_trainer.quality.findings import Findings, quality_in
from gyre_trainer.quality.gate import pass_gate
from gyre_trainer.quality.tables import check_tables
from gyre_trainer.settings import TrainerSettings
from gyre_trainer.training_set import build
from gyre_trainer.work import execute

BEGIN = 1_370_000_000
STEP_S = 600
Checked = Callable[..., Any]


@pytest.fixture
def history(new_history, learnt) -> Any:
    """The history with a preference, to be spoilt."""
    return new_history(list(learnt.impressions), list(learnt.interactions), list(learnt.items))


def with_quality(spec: LoopSpec, **actions: str) -> LoopSpec:
    """The loop with actions by name, a double underscore for the dot."""
    named = {name.replace("__", "."): action for name, action in actions.items()}
    return spec.model_copy(update={"quality": QualitySpec(actions=named, checks=spec.quality.checks)})


def with_checks(spec: LoopSpec, **checks: Any) -> LoopSpec:
    """The loop with thresholds."""
    quality = QualitySpec.model_validate({"actions": dict(spec.quality.actions), "checks": checks})
    return spec.model_copy(update={"quality": quality})


def task_of(spec: LoopSpec, now: float, incumbent: str = "") -> Task:
    """A task on nothing in particular."""
    return Task("run-1", "t1", "v1", spec.model_dump_json(), {"behavior_impressions": 7}, now, incumbent)


def failed(spec: LoopSpec, history: Any, *, now: float | None = None) -> dict[str, Any]:
    """The failed checks of the tables, by name and column."""
    tables = history.tables()
    at = BEGIN + STEP_S * 400 if now is None else now
    checks = [check for subject in check_tables(spec, tables, now=at) for check in subject.checks]
    return {f"{check.name} {check.column}".strip(): check for check in checks if not check.passed}


def test_good_data_passes(spec: LoopSpec, layout: Layout, history) -> None:
    """A plain history passes every check of its tables and of its training set."""
    assert failed(spec, history) == {}
    data = build(spec, layout, history.tables())
    assert [check.name for check in check_examples(spec, data, layout) if not check.passed] == []


def test_duplicates_are_found(spec: LoopSpec, history) -> None:
    """Interactions that come twice are counted, and the rows are the repeats alone."""
    history.interactions += history.interactions[:30]
    check = failed(spec, history)["completeness.duplicates interactions.event_id"]
    assert check.value == pytest.approx(30 / 330)
    assert check.rows.tolist() == list(range(300, 330))


def test_missing_users_are_found(spec: LoopSpec, history) -> None:
    """An empty user id is a missing one."""
    history.interactions[:60] = [{**row, "user_id": ""} for row in history.interactions[:60]]
    check = failed(spec, history)["completeness.missing interactions.user_id"]
    assert (check.value, check.rows.size) == (0.2, 60)


def test_values_have_the_range_that_their_type_declares(spec: LoopSpec, history) -> None:
    """A value outside the declared range is found, and so is one that is missing."""
    events = spec.events.model_validate({"interactions": {"click": {"value": {"min": 0, "max": 5}}, "buy": {}}})
    rated = spec.model_copy(update={"events": events})
    values = [9.0] * 10 + [None] * 40 + [3.0] * 250
    history.interactions = [{**row, "value": value} for row, value in zip(history.interactions, values, strict=True)]
    found = failed(rated, history)
    assert found["completeness.range interactions.value.click"].rows.tolist() == list(range(10))
    assert found["completeness.missing interactions.value.click"].rows.tolist() == list(range(10, 50))


def test_impossible_orders_are_found(spec: LoopSpec, history) -> None:
    """A click before its impression and one on what was not shown are told apart; the logged rest was not shown."""
    for number in range(100, 110):
        row, shown = history.interactions[number], history.impressions[number]
        time = shown["event_time"].timestamp() - 120
        history.interactions[number] = {**row, "request_id": shown["request_id"], "event_time": _at(time)}
    for number in range(200, 205):
        row, shown = history.interactions[number], history.impressions[number]
        history.impressions[number] = {**shown, "shown": 1}
        history.interactions[number] = {**row, "request_id": shown["request_id"], "item_id": shown["item_ids"][1]}
    found = failed(spec, history)
    assert found["sequence.before_impression"].rows.tolist() == list(range(100, 110))
    assert found["sequence.never_shown"].rows.tolist() == list(range(200, 205))


def test_programs_are_found(spec: LoopSpec, history) -> None:
    """A user who clicks like a clock is one, and its clicks are the rows."""
    begin = len(history.interactions)
    for number in range(60):
        history.act("clock", "i1", time=BEGIN + 5000 + 10 * number)
    assert failed(spec, history)["bots"].rows.tolist() == list(range(begin, begin + 60))


def test_old_and_thin_data_is_found(spec: LoopSpec, new_history) -> None:
    """Nothing new for long fails freshness; a day with a tenth of the usual events fails volume."""
    made = new_history()
    made.show("u1", ["a", "b"], time=BEGIN)
    for day in range(6):
        for number in range(200 if day < 5 else 20):
            made.act(f"u{number}", "a", time=BEGIN + 86_400 * day + 300 * number)
    end = BEGIN + 6 * 86_400
    assert failed(spec, made, now=end).keys() == {"completeness.volume"}
    assert "completeness.freshness" in failed(spec, made, now=end + 30 * 86_400)


def test_item_fields_are_checked_where_named(spec: LoopSpec, history) -> None:
    """Missing and impossible fields and personal data are found in the fields that the loop names, and only there."""
    fields = {"year": {"kind": "number"}, "title": {"kind": "text"}, "genre": {"kind": "category", "values": ["drama"]}}
    given = [
        {"year": {"number": 3000.0}, "title": {"text": "write to jane.roe@example.com"}},
        {"year": {"number": 1.0}},
    ]
    history.items = [
        {**row, "fields": json.dumps({"itemId": row["item_id"], "fields": given[number % 2]})}
        for number, row in enumerate(history.items)
    ]
    items = spec.items.model_validate({"fields": fields})
    wide = spec.model_copy(update={"items": items})
    assert failed(wide, history) == {}
    named = with_checks(
        wide,
        completeness={"columns": {"items.title": 0.1}},
        ranges={"columns": {"items.year": {"min": 0, "max": 2030}}},
        personal_data={"fields": ["title"]},
    )
    found = failed(named, history)
    assert found.keys() == {
        "completeness.missing items.title",
        "completeness.range items.year",
        "personal_data items.title",
    }
    assert {check.value for check in found.values()} == {0.5}
    assert "jane" not in " ".join(check.detail for check in found.values())


def test_personal_data_in_ids_and_users(spec: LoopSpec, history) -> None:
    """An id with an address is at fault wherever it comes, and can be set aside; of users the named fields count."""
    history.act("jane.roe@example.com", "a", time=BEGIN + 100)
    history.act("jane.roe@example.com", "b", time=BEGIN + 200)
    history.user("u1", time=BEGIN, member=True)
    note = {"userId": "u1", "fields": {"note": {"text": "call +44 20 7946 0958"}}}
    history.users[0]["fields"] = json.dumps(note)
    users = spec.users.model_validate({"fields": {"note": {"kind": "text"}}})
    named = with_checks(
        spec.model_copy(update={"users": users}),
        personal_data={"fields": ["interactions.user_id", "users.note"]},
    )
    found = failed(named, history)
    assert found.keys() == {"personal_data interactions.user_id", "personal_data users.note"}
    assert found["personal_data interactions.user_id"].rows.tolist() == [
        row for row, each in enumerate(history.interactions) if "@" in each["user_id"]
    ]


def test_labels_that_are_noise_are_found(spec: LoopSpec, layout: Layout, history) -> None:
    """Labels that deny what the features say are named, and mostly those that were turned round."""
    data = build(spec, layout, history.tables())
    column = layout.index["popular_7d"]
    clean = np.where(data.features[:, :, column] > np.median(data.features[:, :, column]), 1.0, 0.0)
    turned = np.random.default_rng(1).random(clean.shape) < 0.1
    noisy = replace(data, relevance=np.abs(clean - turned).astype(np.float32))
    strict = with_checks(spec, labels={"max_noise": 0.02})
    (check,) = [each for each in check_examples(strict, noisy, layout) if each.name == "labels.noise"]
    assert not check.passed
    assert turned.ravel()[check.rows].mean() > 0.7


def test_a_feature_outside_its_range_is_found(spec: LoopSpec, layout: Layout, history) -> None:
    """The rows of a feature's range are flat places of the shown items."""
    data = build(spec, layout, history.tables())
    data.features[7, 3, layout.index["popular_1d"]] = 1e6
    ranged = with_checks(spec, ranges={"columns": {"popular_1d": {"min": 0, "max": 1000}}})
    (check,) = [each for each in check_examples(ranged, data, layout) if each.name == "completeness.range"]
    assert check.rows.tolist() == [7 * data.relevance.shape[1] + 3]


def test_drift_is_judged_on_what_is_newer(spec: LoopSpec, layout: Layout, history) -> None:
    """The same again is no drift, features that doubled are, and without enough that is newer nothing is said."""
    few = with_checks(spec, drift={"min_rows": 100})
    data = build(spec, layout, history.tables())
    files = reference_files(few, data, layout)
    middle = float(data.times[len(data) // 2])
    before = Before.of(files, middle)
    calm = drift_since(few, data, layout, before)
    assert calm is not None
    shifted = replace(data, features=data.features * 3 + 1)
    moved = drift_since(few, shifted, layout, before)
    assert moved is not None
    assert len(moved.failed) > len(calm.failed)
    assert drift_since(few, data, layout, Before.of(files, float(data.times[-1]) + 3600)) is None
    assert drift_since(few, data, layout, None) is None


def test_drift_of_all_features_together_is_judged(spec: LoopSpec, layout: Layout, history) -> None:
    """Values that stay while their rows are mixed up alarm the domain classifier; 0 rows leave it out."""
    few = with_checks(spec, drift={"min_rows": 100, "classifier_rows": 500})
    built, draw = build(spec, layout, history.tables()), np.random.default_rng(0)
    shape = built.features.shape
    together = draw.normal(size=(*shape[:2], 1)) + 0.3 * draw.normal(size=shape)
    data = replace(built, features=together.astype(np.float32))
    before = Before.of(reference_files(few, data, layout), float(data.times[len(data) // 2]))
    calm = drift_since(few, data, layout, before)
    mixed = draw.permuted(data.features.reshape(-1, shape[2]), axis=0).reshape(shape)
    moved = drift_since(few, replace(data, features=mixed), layout, before)
    assert calm is not None
    assert moved is not None
    (quiet,), (loud,) = (
        [check for check in report.checks if check.name == "drift.domain_classifier"] for report in (calm, moved)
    )
    assert quiet.passed
    assert not loud.passed
    without = with_checks(spec, drift={"min_rows": 100, "classifier_rows": 0})
    assert list(reference_files(without, data, layout)) == ["reference.bin"]


def test_a_quarantined_interaction_is_no_label(spec: LoopSpec, layout: Layout, history, tmp_path: Path) -> None:
    """Rows that fail a quarantining check are left out and their ids kept; another rule takes them again."""
    history.show("clock", ["i1", "i2"], time=BEGIN + 4990)
    for number in range(60):
        history.act("clock", "i1", time=BEGIN + 5000 + 10 * number)
    tables, now = history.tables(), BEGIN + STEP_S * 400.0
    whole = pass_gate(Findings(spec, task_of(spec, now)), layout, tables)
    ruled = with_quality(spec, bots="quarantine")
    findings = Findings(ruled, task_of(ruled, now))
    left = pass_gate(findings, layout, tables)
    assert len(left) == len(whole) - 1
    for name, content in findings.files().items():
        (tmp_path / name).write_bytes(content)
    assert quality_in(tmp_path).quarantined == {"interactions": 60}
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert {line["event_id"] for line in lines} == {row["event_id"] for row in history.interactions[300:]}
    assert len(pass_gate(Findings(spec, task_of(spec, now)), layout, tables)) == len(whole)


def test_a_quarantined_item_is_not_trained_on(spec: LoopSpec, layout: Layout, history) -> None:
    """Of an impression only the items at fault go, and all of it where nothing is left to learn."""
    ranged = with_checks(spec, ranges={"columns": {"popular_7d": {"min": 0, "max": 6}}})
    ruled = with_quality(ranged, completeness__range="quarantine")
    tables, now = history.tables(), BEGIN + STEP_S * 400.0
    findings = Findings(ruled, task_of(ruled, now))
    left = pass_gate(findings, layout, tables)
    kept = left.features[:, :, layout.index["popular_7d"]][left.held]
    assert len(left) > 0
    assert kept.max() <= 6
    assert (left.relevance > 0).any(axis=1).all()
    assert {"source", "event_id", "item_id"} == findings.set_aside["shown items"][0].keys()


@pytest.mark.parametrize(("action", "refused"), [("warn", False), ("quarantine", False), ("block", True)])
def test_each_action(spec: LoopSpec, layout: Layout, history, action: str, refused: bool) -> None:
    """A failed check warns, leaves out, or refuses by name, value and threshold; the report says so each time."""
    history.interactions += history.interactions[:30]
    ruled = with_quality(spec, completeness__duplicates=action)
    findings = Findings(ruled, task_of(ruled, BEGIN + STEP_S * 400.0))
    if refused:
        with pytest.raises(
            TrainingRefused, match=r"completeness\.duplicates of interactions\.event_id = 0\.09091: .* 0\.01"
        ):
            pass_gate(findings, layout, history.tables())
    else:
        pass_gate(findings, layout, history.tables())
    report = json.loads(findings.files()["quality.json"])
    assert (report["passed"], report["blocks"]) == (False, refused)
    assert report["quarantined"] == ({"interactions": 30} if action == "quarantine" else {})
    assert b"completeness.duplicates" in findings.files()["quality.html"]


@pytest.mark.adapter
def test_a_poisoned_snapshot_is_refused(tmp_path: Path, learnt, new_history, make_spec, monkeypatch) -> None:
    """A model is refused by name where its data was spoilt, the live one stays, and a rule that warns takes it all."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = TrainerSettings(
        warehouse=str(tmp_path / "warehouse"),
        artifacts=tmp_path / "artifacts",
        mlflow="http://127.0.0.1:9",
        trainer_mlflow_wait_s=0.05,
    )
    spec = with_checks(make_spec(), drift={"min_rows": 300}, ranges={"columns": {"popular_7d": {"min": 0, "max": 50}}})
    strict = with_quality(spec, drift="block", completeness="block")
    learnt.archive(tmp_path / "warehouse", "shop")
    tables = LoopTables(settings, "shop")
    first_pins = tables.pin(None)
    first_task = Task("run-1", "t1", "v1", strict.model_dump_json(), first_pins.snapshots, first_pins.now, "")
    live = Path(execute(first_task, settings, lambda *_: None)["folder"])
    before = {each.name: each.read_bytes() for each in live.iterdir()}

    _poison(new_history).archive(tmp_path / "warehouse", "shop")
    pins = tables.pin(None)
    task = Task("run-2", "t2", "v2", strict.model_dump_json(), pins.snapshots, pins.now, str(live))
    with pytest.raises(TrainingRefused, match=r"quality: completeness\.duplicates") as refusal:
        execute(task, settings, lambda *_: None)
    assert {check.name for check in refusal.value.quality.failed} >= {"completeness.duplicates"}
    drifting = with_quality(spec, drift="block")
    with pytest.raises(TrainingRefused, match=r"quality: drift\.") as refusal:
        execute(replace(task, spec=drifting.model_dump_json()), settings, lambda *_: None)
    names = {check.name for check in refusal.value.quality.failed}
    assert {"completeness.duplicates", "completeness.range", "drift.psi"} <= names
    refused = live.parent / "v2"
    assert {each.name for each in refused.iterdir()} == {"quality.json", "quality.html", "quarantine.jsonl"}
    assert {each.name: each.read_bytes() for each in live.iterdir()} == before

    warned = with_quality(spec, drift="warn").model_copy(
        update={"training": spec.training.model_copy(update={"evaluation": _lenient(spec)})}
    )
    outcome = execute(replace(task, version="v3", spec=warned.model_dump_json()), settings, lambda *_: None)
    assert outcome["measurements"]["quality_failed"] >= 3


def _lenient(spec: LoopSpec) -> Any:
    return spec.training.evaluation.model_copy(update={"min_relative_ndcg": -1.0})


def _poison(new_history) -> Any:
    """A day of one item that everybody clicks a thousand times, each click sent twice."""
    made = new_history()
    rng = np.random.default_rng(5)
    begin = BEGIN + STEP_S * 310
    for number in range(300):
        made.act(f"p{number}", f"i{number % 20}", time=begin + number, event_id=f"p{number}")
    for number in range(120):
        user, time = f"u{number % 40}", begin + 1000 + 60 * number
        shown = [f"i{each}" for each in rng.choice(20, size=12, replace=False)]
        made.show(user, shown, time=time, request_id=f"q{number}", event_id=f"q{number}")
        for again in range(8):
            made.act(user, shown[0], time=time + 1 + again, event_id=f"q{number}-{again}")
    made.interactions += made.interactions[:]
    made.show("u0", ["i1", "i2"], time=begin + 20_000, event_id="last")
    return made


def _at(seconds: float) -> Any:
    return datetime.fromtimestamp(seconds, UTC)
