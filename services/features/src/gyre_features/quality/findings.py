"""Findings of checks as `GetReport` answers them."""

from __future__ import annotations

from gyre.events.v1 import features_pb2 as events
from gyre.features.v1 import data_quality_pb2 as pb

LIVE_QUALITY = "features.live-quality"
"""The topic of judgements of live features."""
ACTIONS = {
    "warn": pb.QUALITY_ACTION_WARN,
    "quarantine": pb.QUALITY_ACTION_QUARANTINE,
    "block": pb.QUALITY_ACTION_BLOCK,
}


def live_report(judged: events.LiveQuality) -> pb.LiveReport:
    """A judgement of live quality as `GetReport` answers it; it passed where every finding did, warnings included."""
    return pb.LiveReport(
        version=judged.version,
        rows=judged.rows,
        newest_event_time=judged.newest_event_time,
        judged_time=judged.judged_time,
        passed=all(each.passed for each in judged.findings),
        checks=[_check(each) for each in judged.findings],
    )


def _check(finding: events.QualityFinding) -> pb.QualityCheck:
    check = pb.QualityCheck(
        name=finding.name,
        column=finding.column,
        passed=finding.passed,
        action=ACTIONS.get(finding.action, pb.QUALITY_ACTION_UNSPECIFIED),
        detail=finding.detail,
    )
    for name in ("value", "threshold"):
        if finding.HasField(name):
            setattr(check, name, getattr(finding, name))
    return check
