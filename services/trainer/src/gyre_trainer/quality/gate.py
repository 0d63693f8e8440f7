"""The gate of a run: checks what was read, leaves rows out by rule, joins, and checks what came of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec

from gyre_trainer.domain import Task
from gyre_trainer.gate import check_data
from gyre_trainer.quality.examples import Before, check_examples, drift_since
from gyre_trainer.quality.findings import Findings, Rows
from gyre_trainer.quality.tables import Subject, check_tables
from gyre_trainer.training_set import Tables, TrainingSet, build

_IDS = ("source", "event_id")


def pass_gate(findings: Findings, layout: Layout, tables: Tables) -> TrainingSet:
    """Check tables and make the training set of what may be trained on; `findings` holds what was found either way.

    Raises:
        TrainingRefused: a blocking check failed, or too little is left.
    """
    spec, task = findings.spec, findings.task
    findings.subjects += check_tables(spec, tables, now=task.now)
    findings.require()
    data = build(spec, layout, _without(findings, tables), now=task.now)
    check_data(spec, layout, data)
    found = _examples(findings, layout, data)
    findings.require()
    if found.size:
        _note_items(findings, data, found)
        data = data.without(found)
        check_data(spec, layout, data)
    return data


def _without(findings: Findings, tables: Tables) -> Tables:
    """The tables without the rows that are set aside.

    Interactions that are set aside are no labels. They still count in features that are computed again, since serving
    counted them too, and both must agree.
    """
    aside, labelling = findings.rows_to_leave_out("interactions"), tables.interactions
    if aside.size:
        findings.quarantine("interactions", labelling.select(list(_IDS)), aside)
        labelling = labelling.take(_others(labelling, aside))
    impressions, shown = tables.impressions, tables.impressions if tables.shown is None else tables.shown
    out = findings.rows_to_leave_out("impressions")
    if out.size:
        findings.quarantine("impressions", impressions.select(list(_IDS)), out)
        impressions = impressions.take(_others(impressions, out))
    return replace(tables, impressions=impressions, shown=shown, labelling=labelling)


def _others(table: pa.Table, rows: Rows) -> pa.Int64Array:
    return pa.array(np.setdiff1d(np.arange(len(table)), rows), pa.int64())


def _examples(findings: Findings, layout: Layout, data: TrainingSet) -> Rows:
    """Check the training set; the shown items that are set aside."""
    spec: LoopSpec = findings.spec
    task: Task = findings.task
    checks = check_examples(spec, data, layout)
    drift = drift_since(spec, data, layout, Before.read(task.incumbent))
    if drift is not None:
        checks += drift.checks
        findings.figures += drift.figures
    findings.subjects.append(Subject("shown items", tuple(checks)))
    return findings.rows_to_leave_out("shown items")


def _note_items(findings: Findings, data: TrainingSet, places: Rows) -> None:
    if data.rows is None:
        return
    owners, positions = np.divmod(places, data.relevance.shape[1])
    of = data.rows.select([*_IDS, "item_ids"]).take(pa.array(owners, pa.int64()))
    shown: list[Any] = of["item_ids"].to_pylist()
    items = [ids[position] for ids, position in zip(shown, positions.tolist(), strict=True)]
    table = of.drop_columns(["item_ids"]).append_column("item_id", pa.array(items, pa.string()))
    findings.quarantine("shown items", table, np.arange(len(items)))
