"""The command about data quality: findings about the live stream, or what a run's gate found."""

from collections.abc import Iterable
from typing import Annotated

import typer
from gyre.features.v1 import data_quality_pb2 as pb
from gyre_runtime import call
from rich.console import Group, RenderableType

from gyre_client.cli.session import TIMEOUT_S, JsonOption, LoopArgument, ask, show, table, when

RunOption = Annotated[str, typer.Option(help="The training run whose gate is asked for.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(quality)


def quality(loop: LoopArgument, run: RunOption = "", *, as_json: JsonOption = False) -> None:
    """Show the findings about the live stream, or those of a training run's gate; failed checks first."""
    request = pb.GetReportRequest(loop=loop, run_id=run, windows=1)
    answer = ask("features", lambda mesh: call(mesh.quality.GetReport, request, timeout_s=TIMEOUT_S))
    show(answer, as_json=as_json, render=lambda: _snapshot(answer.snapshot) if run else _live(answer))


def _live(answer: pb.GetReportResponse) -> RenderableType:
    windows = table("topic", "newest window (UTC)", "events", "unreadable")
    for each in answer.windows:
        windows.add_row(each.topic, when(each.window_start_time), f"{each.events:,}", f"{each.unreadable:,}")
    if not answer.HasField("live"):
        return Group(windows, "live stream: not judged yet")
    live = answer.live
    beside = f"{live.rows:,} items beside the training set of {live.version}" if live.version else "not judged yet"
    return Group(windows, f"live stream, {when(live.judged_time)}; features: {beside}", _checks(live.checks))


def _snapshot(report: pb.SnapshotReport) -> RenderableType:
    outcome = "passed" if report.passed else "training forbidden" if report.blocks else "failed, training went on"
    aside = "".join(f", {count:,} {rows} left out" for rows, count in sorted(report.quarantined.items()))
    return Group(_checks(report.checks), f"run {report.run_id}, {report.version}: {outcome}{aside}")


def _checks(checks: Iterable[pb.QualityCheck]) -> RenderableType:
    made = table("check", "column", "value", "threshold", "outcome", "detail")
    for each in sorted(checks, key=lambda check: (check.passed, check.name, check.column)):
        outcome = "passed" if each.passed else pb.QualityAction.Name(each.action).rpartition("_")[2].lower()
        made.add_row(each.name, each.column, *_numbers(each), outcome, each.detail)
    return made


def _numbers(check: pb.QualityCheck) -> tuple[str, str]:
    """Value and threshold; a dash for what the check has not."""
    value = f"{check.value:.4g}" if check.HasField("value") else "–"
    return value, f"{check.threshold:.4g}" if check.HasField("threshold") else "–"
