"""Commands about the feature store."""

from typing import Annotated

import typer
from gyre.features.v1 import parity_pb2 as pb
from gyre_runtime import call
from rich.console import Group, RenderableType

from gyre_client.cli.session import TIMEOUT_S, JsonOption, LoopArgument, ask, show, table, when

app = typer.Typer(
    help="The feature store: check that what was served is what its definitions give.", no_args_is_help=True
)
_CHECK_TIMEOUT_S = 1800.0


@app.callback()
def features() -> None:
    """Keep `check` a command of its own, though it is the only one."""


@app.command()
def check(
    loop: LoopArgument,
    impressions: Annotated[int, typer.Option(help="At most so many, the newest. Default: the service's.")] = 0,
    *,
    last: Annotated[bool, typer.Option("--last", help="Show the last check's report in place of a new check.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Replay the warehouse and compare with what was served; ends with 1 where a number differs."""
    if last:
        last_request = pb.GetParityRequest(loop=loop)
        last_answer = ask("features_check", lambda mesh: call(mesh.parity.GetParity, last_request, timeout_s=TIMEOUT_S))
        reports = reports_of(last_answer)
    else:
        request = pb.CheckParityRequest(loop=loop, impressions=impressions)
        answer = ask(
            "features_check",
            lambda mesh: call(mesh.parity.CheckParity, request, timeout_s=_CHECK_TIMEOUT_S, attempts=1),
            doing=lambda: f"parity of {loop}: replaying the warehouse",
        )
        reports = reports_of(answer)
    answered = pb.CheckParityResponse(reports=reports)
    show(answered, as_json=as_json, render=lambda: Group(*(_render(each) for each in reports)))
    if any(each.mismatches for each in reports):
        raise typer.Exit(1)


def reports_of(answer: pb.CheckParityResponse | pb.GetParityResponse) -> list[pb.ParityReport]:
    """The reports of an answer, one for each layout, the newest first; a service of the release before gives one."""
    return list(answer.reports) or [answer.report]


def summary(report: pb.ParityReport) -> str:
    """The counts of a parity report in one line, without a newline."""
    unknown = sum(report.unknown.values())
    return (
        f"parity: {report.impressions:,} impressions, {report.values:,} values, "
        f"{report.mismatches:,} mismatches, {unknown:,} unknown"
    )


def _render(report: pb.ParityReport) -> RenderableType:
    lines: list[RenderableType] = [summary(report)]
    replayed = f"{report.events:,} events in {report.batches:,} batches replayed in {report.seconds:.1f} s"
    lines.append(f"layout {report.layout}, {when(report.check_time)} UTC: {replayed}")
    lines += [f"unknown: {count:,}: {reason}" for reason, count in sorted(report.unknown.items())]
    lines += [
        f"set aside: {count:,} of {report.rows[name]:,} rows of {name} cannot be read"
        for name, count in sorted(report.unreadable_rows.items())
    ]
    if report.pending:
        lines.append(f"pending: {report.pending:,}: the warehouse does not hold all of it yet")
    if report.examples:
        made = table("request", "item", "column", "served", "replayed")
        for each in report.examples:
            made.add_row(each.request_id, each.item_id, each.column, f"{each.served:.7g}", f"{each.replayed:.7g}")
        lines.append(made)
    return Group(*lines)
