"""Judges live features beside the live model's training set, and says which alerts follow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from google.protobuf.timestamp_pb2 import Timestamp
from gyre.events.v1 import features_pb2 as pb
from gyre.events.v1 import monitor_pb2 as monitor
from gyre_core.spec import LoopSpec
from gyre_quality.drift import DriftRule, judge
from gyre_quality.report import Check, Report

from gyre_features.quality.live import LiveReference, whole_of


def judge_live(
    spec: LoopSpec, reference: LiveReference, told: Iterable[pb.LiveSketch], *, now: float
) -> pb.LiveQuality | None:
    """Judge what the partitions told; None while there are too few rows.

    Args:
        spec: the loop, whose `quality.checks.drift` is the rule.
        reference: of the live model.
        told: the newest sketch of each partition.
        now: wall time, unix seconds.
    """
    rule, own = spec.quality.checks.drift, [each for each in told if each.version == reference.version]
    whole = whole_of(reference, own)
    if whole.sketch.rows < rule.min_rows:
        return None
    checks = list(judge(reference.reference, whole.sketch, DriftRule(alpha=rule.alpha)).checks())
    if reference.classifier is not None and rule.classifier_rows and whole.sample is not None:
        checks.append(reference.classifier.check(whole.sample))
    report = Report(spec.loop, tuple(checks), spec.quality.actions)
    judged = pb.LiveQuality(loop=spec.loop, version=reference.version, rows=whole.sketch.rows)
    judged.newest_event_time.FromNanoseconds(max(each.newest_event_time.ToNanoseconds() for each in own))
    judged.judged_time.FromNanoseconds(round(now * 1e9))
    judged.findings.extend(_finding(check, report.action(check)) for check in checks)
    return judged


def _finding(check: Check, action: str) -> pb.QualityFinding:
    finding = pb.QualityFinding(
        name=check.name, column=check.column, passed=bool(check.passed), action=action, detail=check.detail
    )
    for name, value in (("value", check.value), ("threshold", check.threshold)):
        if math.isfinite(value):
            setattr(finding, name, value)
    return finding


def worst(findings: Iterable[pb.QualityFinding]) -> dict[str, pb.QualityFinding]:
    """Of each check the finding that is furthest beyond its threshold, or nearest to it."""
    found: dict[str, pb.QualityFinding] = {}
    for each in findings:
        known = found.get(each.name)
        if known is None or _badness(each) > _badness(known):
            found[each.name] = each
    return found


def _badness(finding: pb.QualityFinding) -> tuple[bool, float]:
    return not finding.passed, finding.value / finding.threshold if finding.threshold > 0 else 0.0


def follow_up(judged: pb.LiveQuality, failing: Mapping[str, Timestamp]) -> list[monitor.Alert]:
    """Note since when checks fail, and answer an alert for each that begins to fail, goes on, or passes again.

    Where `gyre.yaml` says block or quarantine the alert is critical: it is the next training run's gate that acts.

    Args:
        judged: the new judgement, which gets `failing`.
        failing: the checks that failed at the judgement before, with the wall time since they did.
    """
    alerts = []
    for name, finding in worst(judged.findings).items():
        if finding.passed and name not in failing:
            continue
        since = failing.get(name, judged.judged_time)
        alert = monitor.Alert(
            alert_id=f"{judged.loop}-live-{name}",
            loop=judged.loop,
            name=f"live {name}",
            severity=monitor.ALERT_SEVERITY_WARNING if finding.action == "warn" else monitor.ALERT_SEVERITY_CRITICAL,
            message=_message(judged.version, finding),
            start_time=since,
        )
        if finding.passed:
            alert.end_time.CopyFrom(judged.judged_time)
        else:
            judged.failing[name].CopyFrom(since)
        alerts.append(alert)
    return alerts


def _message(version: str, finding: pb.QualityFinding) -> str:
    about = f" of {finding.column}" if finding.column else ""
    bound = f"at most {finding.threshold:.4g}"
    return f"live {finding.name}{about} = {finding.value:.4g}: must be {bound} ({finding.detail}; model {version})"
