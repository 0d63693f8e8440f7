"""Commands about the loop's file, and about what the loop is doing."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from gyre.events.v1 import features_pb2 as events
from gyre.monitor.v1 import monitor_pb2 as pb
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec, SpecError, json_schema, load_loop
from gyre_core.topics import BEHAVIOR, Topic, declared
from gyre_runtime import call
from gyre_runtime.kafka import config_differences, mend_configs
from gyre_runtime.layouts import refusal_of
from rich.console import Group, RenderableType

from gyre_client.cli.session import (
    TIMEOUT_S,
    JsonOption,
    LoopArgument,
    ask,
    console,
    fail,
    show,
    table,
    unix_time,
    when,
)
from gyre_client.clock import set_clock
from gyre_client.lineage import lineage_tree
from gyre_client.mesh import Mesh

FileArgument = Annotated[Path, typer.Argument(help="A gyre.yaml.", show_default=False)]
_DAY_S = 86_400
_REMEDIES = {
    "TOO_OLD": ": they are later than events.max_lateness of gyre.yaml. On the replay clock they are behind the newest "
    "event of their partition, by more than that and more than events.max_future: send events in the order of their "
    "times, or raise events.max_lateness; where one of a wrong time set the clock ahead, `gyre clock LOOP --to T "
    "--back` sets it back",
    "IN_THE_FUTURE": ": they are further ahead than events.max_future of gyre.yaml, on the replay clock of the newest "
    "event of their partition; where that gap is true, `gyre clock LOOP --to T` crosses it",
}
"""What is wrong with events that are refused by time, and what admits them."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (validate, schema, topics, clock, status, experiment, trace):
        app.command()(command)


def validate(
    file: FileArgument,
    *,
    mesh: Annotated[bool, typer.Option("--mesh", help="Also ask the mesh whether it can maintain the layout.")] = False,
) -> None:
    """Check a gyre.yaml; names file, line, field, value and rule of every mistake.

    With `--mesh` also whether its feature layout can be maintained beside those that models of the running mesh name:
    TOO_MANY_LAYOUTS and KIND_CHANGED are found before any process is restarted.
    """
    try:
        spec = load_loop(file)
    except SpecError as error:
        for issue in error.issues:
            typer.echo(str(issue))
        raise typer.Exit(1) from error
    except (OSError, UnicodeDecodeError) as error:
        fail(_unreadable(file, error))
    layout = Layout.compile(spec)
    if mesh and (refused := ask("kafka", lambda found: refusal_of(found.settings.kafka, spec))):
        fail(f"{file}: {refused.reason}: {refused}")
    facts = f"{len(spec.features)} features in {len(layout.columns)} columns, layout {layout.hash}"
    typer.echo(f"{file}: loop {spec.loop} is valid: {facts}")


def schema() -> None:
    """Print the JSON Schema of gyre.yaml, for editors."""
    typer.echo(json.dumps(json_schema(), indent=2))


def _unreadable(file: Path, error: Exception) -> str:
    return f"{file}: cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}"


def topics(
    file: FileArgument,
    *,
    check: Annotated[bool, typer.Option("--check", help="Compare with what Kafka has; exit code 1 if not.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Make existing topics as they are declared.")] = False,
) -> None:
    """List the Kafka topics that a loop has, as its gyre.yaml makes them; compare those that exist, or mend them."""
    try:
        spec = load_loop(file)
    except SpecError as error:
        fail(str(error).partition("\n")[0])
    except (OSError, UnicodeDecodeError) as error:
        fail(_unreadable(file, error))
    if check or apply:
        _compare_topics(spec, apply=apply)
        return
    made = table("topic", "key", "payload", "partitions", "kept", "written by")
    for each in declared(spec):
        made.add_row(each.name, each.key, each.payload, str(each.partitions), _retention(each), each.owner)
    console().print(made)


def _compare_topics(spec: LoopSpec, *, apply: bool) -> None:
    work = mend_configs if apply else config_differences
    differences = ask("kafka", lambda mesh: work(mesh.settings.kafka, declared(spec)))
    for each in differences:
        typer.echo(str(each))
    if apply:
        typer.echo(f"{len(differences)} settings mended")
    elif differences:
        fail(f"{len(differences)} settings are not as declared: `gyre topics GYRE_YAML --apply` mends them")
    else:
        typer.echo("all topics that exist are as declared")


def clock(
    loop: LoopArgument,
    to: Annotated[str, typer.Option(help="ISO 8601 with its UTC offset, or unix seconds.", show_default=False)],
    back: Annotated[bool, typer.Option("--back", help="Also where that turns a partition's clock back.")] = False,
) -> None:
    """Set the replay clock of a loop: across a gap in time, or back after an event of a wrong time."""
    at = unix_time(to)

    async def work(mesh: Mesh) -> None:
        await set_clock(mesh.settings, loop, at or 0.0, back=back)

    ask("kafka", work)
    typer.echo(f"{loop}: a mark to {to} is in every partition of {' and '.join(BEHAVIOR)}")


def _retention(each: Topic) -> str:
    if each.compacted:
        return "newest of each key"
    return "for ever" if each.retention_s is None else f"{each.retention_s / _DAY_S:g} days"


def status(loop: LoopArgument, *, as_json: JsonOption = False) -> None:
    """Show the stage that every part of the loop is in, and its feature layouts."""
    request = pb.GetLoopStatusRequest(loop=loop)
    answer = ask("monitor", lambda mesh: call(mesh.monitor.GetLoopStatus, request, timeout_s=TIMEOUT_S))
    show(answer, as_json=as_json, render=lambda: _stages(answer))


def _stages(answer: pb.GetLoopStatusResponse) -> RenderableType:
    made = table("stage", "state", "works on", "count", "last moved (UTC)")
    for stage in answer.stages:
        made.add_row(stage.stage, stage.state, stage.subject, f"{stage.count:,}", when(stage.update_time))
    lines = []
    if answer.volume_threshold:
        lines.append(
            f"{answer.interactions_since_trigger:,} of {answer.volume_threshold:,} interactions to the next run"
        )
    if answer.loop_time_s:
        lines.append(f"the last trigger was served by all traffic after {answer.loop_time_s:.1f} s")
    lines += answer.topic_differences
    if answer.topic_differences:
        lines.append("`gyre topics GYRE_YAML --apply` makes the topics as they are declared")
    lines += _refused(answer.refused_events)
    lines += _stalled(answer.stalled_clocks)
    return Group(made, *([_layouts(answer.layouts)] if answer.layouts else []), *lines)


def _refused(refused: Sequence[pb.RefusedEvents]) -> list[str]:
    """A line for each topic and reason of refused events, what admits them, and where they are."""
    lines = [
        f"{each.topic}: {each.count:,} events refused as {each.reason} since the monitor started, the last at "
        f"{when(each.last_time)}{_REMEDIES.get(each.reason, '')}"
        for each in refused
    ]
    if refused:
        loop = refused[0].topic.partition(".")[0]
        lines.append(f"`gyre dlq list {loop}` says what was wrong with each; `gyre dlq replay {loop}` puts them back")
    return lines


def _stalled(clocks: Sequence[pb.StalledClock]) -> list[str]:
    """A line for each partition whose replay clock stands, and how events are let in again."""
    ahead = [each for each in clocks if each.next_time.ToNanoseconds() < each.clock_time.ToNanoseconds()]
    behind = [each for each in clocks if each not in ahead]
    lines = [_stalled_line(each, "further ahead than events.max_future") for each in behind]
    if behind:
        lines.append(
            f"`{_clock_to(behind)}` lets them in again if the gap is true, and `gyre dlq replay {_loop_of(behind)}` "
            "puts back what was refused; a larger events.max_future in gyre.yaml avoids it"
        )
    lines += [_stalled_line(each, "too old beside it") for each in ahead]
    if ahead:
        lines.append(
            f"`{_clock_to(ahead)} --back` lets them in again if an event of a wrong time moved the clock, and "
            f"`gyre dlq replay {_loop_of(ahead)}` puts back what was refused"
        )
    return lines


def _stalled_line(clock: pb.StalledClock, how: str) -> str:
    return (
        f"{clock.topic}, partition {clock.partition}: the clock stands at {when(clock.clock_time)}, and the last "
        f"{clock.refused:,} events are {how}, the earliest at {when(clock.next_time)}"
    )


def _loop_of(clocks: Sequence[pb.StalledClock]) -> str:
    return clocks[0].topic.partition(".")[0]


def _clock_to(clocks: Sequence[pb.StalledClock]) -> str:
    return f"gyre clock {_loop_of(clocks)} --to {min(each.next_time.ToSeconds() for each in clocks)}"


def _layouts(layouts: Iterable[events.FeatureLayout]) -> RenderableType:
    made = table("feature layout", "state", "filled", "wanted by", "since (UTC)")
    for each in layouts:
        state = events.LayoutState.Name(each.state).removeprefix("LAYOUT_STATE_").lower()
        made.add_row(each.layout, state, _filled(each), ", ".join(each.wanted_by), when(each.change_time))
    return made


def _filled(layout: events.FeatureLayout) -> str:
    if layout.state == events.LAYOUT_STATE_READY:
        return "100 %"
    share = layout.filled_events / layout.total_events if layout.total_events else 0.0
    return f"{100 * min(share, 1.0):.0f} % ({layout.filled_events:,} of {layout.total_events:,} events)"


def experiment(
    loop: LoopArgument,
    rollout: Annotated[str, typer.Option(help="Only this rollout.", show_default=False)] = "",
    *,
    as_json: JsonOption = False,
) -> None:
    """Compare the versions and arms of a loop."""
    request = pb.GetExperimentRequest(loop=loop, rollout_id=rollout)
    answer = ask("monitor", lambda mesh: call(mesh.monitor.GetExperiment, request, timeout_s=TIMEOUT_S))
    show(answer, as_json=as_json, render=lambda: _arms(answer))


def _arms(answer: pb.GetExperimentResponse) -> RenderableType:
    made = table("arm", "version", "answers", "CTR (95 %)", "conversion", "p50", "p99", "degraded")
    for arm in answer.arms:
        made.add_row(
            arm.arm,
            arm.version,
            f"{arm.impressions:,}",
            f"{arm.ctr:.2%} ({arm.ctr_low:.2%} to {arm.ctr_high:.2%})",
            f"{arm.conversion:.2%}",
            f"{1000 * arm.latency_p50_s:.1f} ms",
            f"{1000 * arm.latency_p99_s:.1f} ms",
            f"{arm.degraded_share:.2%}",
        )
    return made


def trace(
    loop: LoopArgument,
    request_id: Annotated[str, typer.Argument(help="The answer's request id.", show_default=False)],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show everything that led to an answer: its trace, and the rollout, run and trigger behind it."""
    request = pb.GetLineageRequest(loop=loop, request_id=request_id)
    answer = ask("monitor", lambda mesh: call(mesh.monitor.GetLineage, request, timeout_s=TIMEOUT_S))
    show(answer, as_json=as_json, render=lambda: lineage_tree(answer))
