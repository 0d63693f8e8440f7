"""Judges live features beside the live model's training set, and says what follows from all live findings."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp
from gyre.events.v1 import features_pb2 as pb
from gyre.events.v1 import monitor_pb2 as monitor
from gyre_core.spec import LoopSpec
from gyre_quality.drift import DriftRule, judge
from gyre_quality.report import Check, Report

from gyre_features.quality.live import LiveReference, whole_of
from gyre_features.quality.windowed import Judged


@dataclass(frozen=True)
class JudgedFeatures:
    """What the checks said of the features that the newest impressions were served.

    Attributes:
        version: of the model whose training set they were compared with.
        rows: how many served items the sketches hold.
        newest_ns: event time of the newest impression, unix nanoseconds.
        checks: the findings.
    """

    version: str
    rows: int
    newest_ns: int
    checks: tuple[Check, ...]


def judge_features(
    spec: LoopSpec, reference: LiveReference, published: Iterable[pb.LiveSketch]
) -> JudgedFeatures | None:
    """Compare what the partitions published with the training set.

    None while there are less than `drift.min_rows` rows.

    Args:
        spec: the loop, whose `quality.checks.drift` is the rule.
        reference: of the live model.
        published: the newest sketch of each partition.
    """
    rule, own = spec.quality.checks.drift, [each for each in published if each.version == reference.version]
    whole = whole_of(reference, own)
    if whole.sketch.rows < rule.min_rows:
        return None
    checks = list(judge(reference.reference, whole.sketch, DriftRule(alpha=rule.alpha)).checks())
    if reference.classifier is not None and rule.classifier_rows and whole.sample is not None:
        checks.append(reference.classifier.check(whole.sample))
    newest = max(each.newest_event_time.ToNanoseconds() for each in own)
    return JudgedFeatures(reference.version, whole.sketch.rows, newest, tuple(checks))


def live_quality(
    spec: LoopSpec, features: JudgedFeatures | None, windows: Judged, *, now: float
) -> pb.LiveQuality | None:
    """A message with all findings about a live stream, `failing` still empty; None where nothing was judged.

    Args:
        spec: the loop, whose `quality.actions` say what follows.
        features: what was said of features, if anything.
        windows: what was said of the newest windows.
        now: wall time, unix seconds.
    """
    checks = (*windows.checks, *(features.checks if features is not None else ()))
    if not checks:
        return None
    report, judged = Report(spec.loop, checks, spec.quality.actions), pb.LiveQuality(loop=spec.loop)
    if features is not None:
        judged.version, judged.rows = features.version, features.rows
        judged.newest_event_time.FromNanoseconds(features.newest_ns)
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
    """The worst finding of each check, by name: a failed one first, then the greatest ratio of value to threshold."""
    found: dict[str, pb.QualityFinding] = {}
    for each in findings:
        known = found.get(each.name)
        if known is None or _badness(each) > _badness(known):
            found[each.name] = each
    return found


def _badness(finding: pb.QualityFinding) -> tuple[bool, float]:
    return not finding.passed, finding.value / finding.threshold if finding.threshold > 0 else 0.0


def follow_up(
    judged: pb.LiveQuality, failing: Mapping[str, Timestamp], undecided: Collection[str] = ()
) -> list[monitor.Alert]:
    """Set `judged.failing`, and answer an alert for each check that begins to fail, goes on, or passes again, by name.

    Where `gyre.yaml` says block or quarantine the alert is critical: it is the next training run's gate that acts. A
    check that is no longer made has its alert ended.

    Args:
        judged: the new judgement; its `failing` is filled here with since when each check fails.
        failing: the checks that failed at the judgement before, with the wall time since they did.
        undecided: checks that could say nothing this time; what they said before stands.
    """
    alerts, found = [], worst(judged.findings)
    for name in sorted({*found, *failing}):
        finding, since = found.get(name), failing.get(name)
        if finding is None and name in undecided:
            judged.failing[name].CopyFrom(failing[name])
            continue
        passed = finding is None or finding.passed
        if passed and since is None:
            continue
        warns = finding is not None and finding.action == "warn"
        alert = monitor.Alert(
            alert_id=f"{judged.loop}-live-{name}",
            loop=judged.loop,
            name=f"live {name}",
            severity=monitor.ALERT_SEVERITY_WARNING if warns else monitor.ALERT_SEVERITY_CRITICAL,
            message=f"live {name}: no longer checked" if finding is None else _message(judged.version, finding),
            start_time=judged.judged_time if since is None else since,
        )
        if passed:
            alert.end_time.CopyFrom(judged.judged_time)
        else:
            judged.failing[name].CopyFrom(alert.start_time)
        alerts.append(alert)
    return alerts


def _message(version: str, finding: pb.QualityFinding) -> str:
    about = f" of {finding.column}" if finding.column else ""
    model = f"; model {version}" if finding.name.startswith("drift.") else ""
    bound = f"at most {finding.threshold:.4g}"
    return f"live {finding.name}{about} = {finding.value:.4g}: must be {bound} ({finding.detail}{model})"
