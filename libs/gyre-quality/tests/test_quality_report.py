"""Checks, actions and what a report looks like."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from gyre_quality.figures import bars, lines, shares
from gyre_quality.report import Check, Report

BAD = Check("labels.noise", "", 0.3, 0.1, False, "30 of 100", np.array([3, 5]))
WORSE = Check("drift.psi", "age", 0.9, 0.1, False, "p = 0", np.array([5, 9]))
GOOD = Check("drift.kl", "age", 0.01, 0.1, True)


def test_actions_go_by_name_then_by_family():
    """The longest leading part of a check's name decides, and a warning is the least."""
    report = Report("snapshot 7", (BAD, WORSE, GOOD), {"drift": "block", "drift.kl": "warn", "labels": "quarantine"})
    assert [report.action(check) for check in report.checks] == ["quarantine", "block", "warn"]
    assert Report("s", (BAD,)).action(BAD) == "warn"


def test_only_failed_checks_have_consequences():
    """A report blocks and quarantines for failed checks alone, each row once."""
    rules = {"drift.psi": "quarantine", "labels": "quarantine", "drift.kl": "block"}
    report = Report("s", (BAD, WORSE, GOOD), rules)
    assert not report.blocks
    assert report.quarantined().tolist() == [3, 5, 9]
    assert Report("s", (WORSE,), {"drift": "block"}).blocks
    assert Report("s", (GOOD,)).passed
    assert Report("s", (GOOD,)).quarantined().size == 0


def test_json_holds_counts_and_no_rows():
    """The JSON names each check, its action and how many rows are at fault; infinities become null."""
    endless = Check("completeness.freshness", "", float("inf"), 60.0, False)
    body = json.loads(Report("s", (BAD, endless), {"labels": "block"}).to_json())
    assert body["blocks"] is True
    assert body["checks"][0] == {
        "name": "labels.noise", "column": "", "value": 0.3, "threshold": 0.1, "passed": False, "detail": "30 of 100",
        "rows": 2, "action": "block",
    }  # fmt: skip
    assert body["checks"][1]["value"] is None


def test_html_escapes_and_loads_nothing():
    """Names from the data cannot become markup, and the page refers to nothing outside."""
    nasty = Check("drift.psi", "<script>alert(1)</script>", 1.0, 0.5, False, 'a "quote" & more')
    page = Report("<b>", (nasty,), figures=(bars("<i>", {"<u>": 1.0}, {"<u>": 0.5}),)).to_html()
    assert "<script" not in page
    assert "<u>" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "1 of 1 checks failed" in page


@pytest.mark.parametrize(
    "figure",
    [
        bars("b", {"a": 0.5, "c & d": 2.0, "e": float("inf")}, {"a": 0.1}),
        bars("none", {}),
        shares("s", ["≤ 1", "> 1"], {"reference": [0.2, 0.8], "chunk": [0.5, 0.5]}),
        lines("l", {"age": [0.1, float("nan"), 3.0]}, threshold=1.0),
        lines("none", {}),
    ],
)
def test_figures_are_well_formed(figure):
    """Every plot is valid XML."""
    root = ET.fromstring(figure.svg)
    assert root.tag.endswith("svg")


def test_long_names_and_many_series_stay_inside():
    """A name that does not fit is cut and whole when pointed at; legends share the width."""
    name = "drift.wasserstein of_a_feature_with_a_name_that_goes_on_and_on"
    drawn = bars("t", {name: 1.0}).svg
    assert f"<title>{name}: 1</title>" in drawn
    assert f">{name}<" not in drawn
    many = lines("t", {f"{each}_{name}": [1.0, 2.0] for each in range(6)}).svg
    places = [float(each) for each in re.findall(r'<text x="([\d.]+)" y="12">', many)]
    assert places == sorted(set(places))
    assert max(places) < 520


def test_bars_mark_what_exceeds_its_threshold():
    """Only the bar beyond its threshold is red."""
    assert bars("b", {"a": 0.5, "c": 0.05}, {"a": 0.1, "c": 0.1}).svg.count("var(--bad)") == 1


def test_reports_of_one_data_set_join():
    """Joining keeps all checks in order and the first report's subject and actions."""
    joined = Report("s", (BAD,), {"drift": "block"}).joined([Report("other", (WORSE,)), Report("", (GOOD,))])
    assert joined.checks == (BAD, WORSE, GOOD)
    assert joined.subject == "s"
    assert joined.blocks
