"""The command that forgets a user."""

from collections.abc import Iterator
from typing import Annotated

import typer
from gyre.features.v1 import features_pb2 as pb
from gyre_runtime import call
from rich.console import Group

from gyre_client.cli.session import JsonOption, LoopArgument, ask, show, when

_TIMEOUT_S = 60.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(forget)


def forget(
    loop: LoopArgument,
    user: Annotated[str, typer.Argument(help="The user's id.", show_default=False)],
    *,
    as_json: JsonOption = False,
) -> None:
    """Forget a user, online and in the warehouse, and say what a search finds afterwards."""
    request = pb.DeleteEntityRequest(loop=loop, kind=pb.ENTITY_KIND_USER, id=user)
    answer = ask("features", lambda mesh: call(mesh.features.DeleteEntity, request, timeout_s=_TIMEOUT_S, attempts=1))
    show(answer, as_json=as_json, render=lambda: Group(*_lines(answer)))
    if answer.found_keys or answer.found_rows or not answer.warehouse_erased:
        raise typer.Exit(1)


def _lines(answer: pb.DeleteEntityResponse) -> Iterator[str]:
    yield f"online: {answer.deleted_keys} keys deleted, {answer.found_keys} found afterwards"
    if answer.warehouse_erased:
        rows = ", ".join(f"{count:,} of {table}" for table, count in sorted(answer.erased_rows.items()))
        yield f"warehouse: rows erased: {rows or 'none'}; {answer.found_rows} found afterwards"
    else:
        yield "warehouse: not erased yet; the tombstone stands and features-archive goes on: ask again"
    yield f"Kafka holds events until {when(answer.kafka_until_time)} UTC at the latest; they count no more"
