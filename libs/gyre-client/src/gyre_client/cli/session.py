"""One command against the mesh: settings from the environment, errors in one line that says what to do."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from gyre_core.event_time import in_range, parse_time
from gyre_core.heartbeat import Heartbeat
from gyre_runtime import DeadlineExceeded, GyreError, Unauthenticated, Unavailable, load_settings
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from gyre_client.mesh import Mesh
from gyre_client.settings import ClientSettings

T = TypeVar("T")
_PIPE_WIDTH = 10_000
"""Columns of an output that is no terminal: no cell of a table is cut or broken there."""
TIMEOUT_S = 10.0

LoopArgument = Annotated[str, typer.Argument(help="The loop's name.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
TimeOption = Annotated[
    str | None, typer.Option(help="ISO 8601 with its UTC offset, or unix seconds. Default: now.", show_default=False)
]


def console() -> Console:
    """A new console on standard output; lines are not wrapped where the output goes into a pipe."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, soft_wrap=not sys.stdout.isatty())


def fail(message: str) -> NoReturn:
    """Print one line on stderr and end with exit code 1."""
    Console(stderr=True, soft_wrap=True).print(message, style="red", markup=False, highlight=False)
    raise typer.Exit(1)


def ask(service: str, work: Callable[[Mesh], Awaitable[T]], *, doing: Callable[[], str] | None = None) -> T:
    """Run `work` with the mesh of the environment's settings, and return what it returns.

    A `GyreError` ends the command with one line on stderr and exit code 1; other exceptions come through. Nothing is
    repeated here.

    What takes long says every ten seconds on stderr that it is under way.

    Args:
        service: the service, or `kafka`, that is asked, named like its setting: its address is named where it does not
            answer.
        work: what to do.
        doing: what is being done, for those lines.
    """
    settings = load_settings(ClientSettings)

    async def run() -> T:
        async with Mesh(settings) as mesh:
            return await work(mesh)

    describe = doing or (lambda: f"{service}: no answer yet")
    try:
        with Heartbeat(lambda: [describe()], out=sys.stderr, has_bar=False):
            return asyncio.run(run())
    except GyreError as error:
        fail(explain(error, service=service, address=getattr(settings, service)))


def explain(error: GyreError, *, service: str, address: str) -> str:
    """An error in one line that names what to do about it, where that is known; prints nothing."""
    if isinstance(error, Unauthenticated):
        return f"{error}. Give the token with GYRE_TOKEN, or its file with GYRE_TOKEN_FILE."
    if error.violations:
        return "; ".join(str(each) for each in error.violations)
    if isinstance(error, Unavailable | DeadlineExceeded) and error.reason in {error.code.name, "KAFKA_UNAVAILABLE"}:
        variable = f"GYRE_{service.upper()}"
        return f"{service} at {address} does not answer: start it with `make up`, or name another in {variable}."
    return str(error)


def show(message: Message, *, as_json: bool, render: Callable[[], RenderableType]) -> None:
    """Print an answer on standard output: as JSON with the proto's field names, else what `render` makes for people."""
    if as_json:
        typer.echo(MessageToJson(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
    else:
        console().print(render())


class _PlainTable(Table):
    """A table whose texts are shown as they are: ids and values hold brackets, too."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row; of a text no bracket is markup."""
        super().add_row(*(Text(each) if isinstance(each, str) else each for each in cells), **options)


def table(*headings: str) -> Table:
    """An empty table with these headings and no frame; texts in it are shown as they are, brackets are no markup."""
    made = _PlainTable(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        made.add_column(heading)
    return made


def unix_time(text: str | None) -> float | None:
    """The time that a person gave, ISO 8601 or unix seconds, as unix seconds; None for None.

    What is no such time ends the command with a line on stderr and exit code 1.
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        return seconds if in_range(seconds) else fail(f"time = {text!r}: must be a time from year 1 to 9999")
    try:
        return parse_time(text)
    except ValueError as error:
        rule = str(error) if str(error).startswith("must") else "must be ISO 8601, or unix seconds"
        fail(f"time = {text!r}: {rule}, like 2013-07-10T12:00:00Z")


def when(time: Timestamp) -> str:
    """A time for people, UTC to the second (`2013-07-10 12:00:00`); empty where it is not set."""
    if not time.ToNanoseconds():
        return ""
    return datetime.fromtimestamp(time.ToNanoseconds() / 1e9, UTC).isoformat(sep=" ", timespec="seconds")[:-6]
