"""Commands that ask the gateway: rank, recommend, track."""

from collections.abc import Sequence
from typing import Annotated

import typer
from gyre.gateway.v1 import gateway_pb2 as pb
from rich.console import Group, RenderableType

from gyre_client.cli.session import JsonOption, LoopArgument, TimeOption, ask, fail, show, table, unix_time
from gyre_client.gateway import Interaction, RequestOptions

UserOption = Annotated[str, typer.Option(help="The user.", show_default=False)]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", help="Of the request's context: device=phone.", show_default=False)
]
SampledOption = Annotated[bool, typer.Option("--sampled", help="Keep this request's trace, for `gyre trace`.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (rank, recommend, track):
        app.command()(command)


def _options(time: str | None, labels: Sequence[str] | None, *, sampled: bool) -> RequestOptions:
    options = RequestOptions(sampled=sampled, labels=dict(map(_label, labels or ())))
    moment = unix_time(time)
    if moment is not None:
        options["time"] = moment
    return options


def _label(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not name or not equals:
        fail(f"--label = {given!r}: must be name=value")
    return name, value


def rank(  # noqa: PLR0913 (the options of a command)
    loop: LoopArgument,
    user: UserOption,
    items: Annotated[str, typer.Option(help="The candidates, separated by commas.", show_default=False)],
    limit: Annotated[int, typer.Option(min=0, max=1000, help="How many to show; 0 shows all.")] = 0,
    time: TimeOption = None,
    label: LabelOption = None,
    *,
    sampled: SampledOption = False,
    as_json: JsonOption = False,
) -> None:
    """Order candidates for a user; the answer counts as shown to them."""
    candidates = [item.strip() for item in items.split(",") if item.strip()]
    options = _options(time, label, sampled=sampled)
    answer = ask("gateway", lambda mesh: mesh.gateway.rank(loop, user, candidates, limit=limit, **options))
    show(answer, as_json=as_json, render=lambda: _ranked(answer))


def recommend(  # noqa: PLR0913 (the options of a command)
    loop: LoopArgument,
    user: UserOption,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many items.")] = 10,
    time: TimeOption = None,
    label: LabelOption = None,
    *,
    sampled: SampledOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find items for a user; the answer counts as shown to them."""
    options = _options(time, label, sampled=sampled)
    answer = ask("gateway", lambda mesh: mesh.gateway.recommend(loop, user, limit=limit, **options))
    show(answer, as_json=as_json, render=lambda: _ranked(answer))


def _ranked(answer: pb.RankResponse | pb.RecommendResponse) -> RenderableType:
    made = table("place", "item", "score")
    for place, item in enumerate(answer.items, start=1):
        made.add_row(str(place), item.item_id, f"{item.score:.4f}")
    how = answer.provenance
    model = f"model {how.model_version}, arm {how.arm}" if how.model_version else "no model"
    degraded = f", degraded: {how.degraded_reason}" if how.degraded else ""
    explored = ", in random order for exploration" if how.explored else ""
    return Group(made, f"request {how.request_id}: {model}{degraded}{explored}")


def track(  # noqa: PLR0913 (the options of a command)
    loop: LoopArgument,
    user: UserOption,
    item: Annotated[str, typer.Option(help="The item.", show_default=False)],
    kind: Annotated[str, typer.Option("--type", help="One of the loop's interaction types.", show_default=False)],
    value: Annotated[float | None, typer.Option(help="What goes with the type.", show_default=False)] = None,
    time: TimeOption = None,
    *,
    request_id: Annotated[str, typer.Option("--request", help="The answer that led to it.", show_default=False)] = "",
) -> None:
    """Send what a user did with an item, and print the event's id once Kafka has it."""
    event = Interaction(user, item, kind, value=value, time=unix_time(time), request_id=request_id)
    (event_id,) = ask("gateway", lambda mesh: mesh.gateway.track(loop, [event]))
    typer.echo(event_id)
