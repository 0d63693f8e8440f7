"""The `gyre-local` command: set up, start, watch and stop the local stack."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer
from gyre_core.heartbeat import Heartbeat
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gyre_local import operations
from gyre_local.components import services
from gyre_local.failures import LocalStackError
from gyre_local.places import StackDirectories, stack_places
from gyre_local.ports import load_ports
from gyre_local.process import tail
from gyre_local.setup import set_up
from gyre_local.stack import Stack, build_stack, record_loops, recorded_loops
from gyre_local.supervisor import log_path

FOLLOW_S = 0.2
PIPE_WIDTH = 140
app = typer.Typer(help="The local stack as native processes.", no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
LoopOption = Annotated[
    list[Path] | None,
    typer.Option("--loop", help="A gyre.yaml to serve, may be repeated; by default those of the last `up`."),
]


def _stack(loops: list[Path] | None = None) -> Stack:
    """The stack that serves `loops`, by default those it was last brought up with."""
    places = stack_places()
    chosen = [loop.absolute() for loop in loops] if loops else recorded_loops(places)
    return build_stack(places, load_ports(), chosen)


class _Report:
    """Prints the steps of processes, and knows which of them are between two steps."""

    def __init__(self) -> None:
        self._under_way: dict[str, str] = {}

    def __call__(self, name: str, step: str) -> None:
        if step in {"healthy", "stopped"}:
            self._under_way.pop(name, None)
        else:
            self._under_way[name] = step
        colour = {"healthy": "green", "stopped": "yellow"}.get(step, "dim")
        console.print(f"  {name:<17} [{colour}]{step}[/]")

    def under_way(self) -> list[str]:
        """What has begun and not ended, in one line."""
        return [", ".join(f"{name} is {step}" for name, step in list(self._under_way.items())) or "preparing"]


@app.command()
def setup() -> None:
    """Install what the stack needs and is missing; starts nothing, and is quick when nothing is missing."""
    started = time.monotonic()
    current = ["starting"]

    def report(step: str) -> None:
        current[0] = step
        console.print(f"  {step}", highlight=False)

    with Heartbeat(lambda: current):
        set_up(report)
    console.print(f"[green]the stack is set up[/] ({time.monotonic() - started:.1f} s)")


@app.command()
def up(
    loop: LoopOption = None,
    only: Annotated[list[str] | None, typer.Option(help="Start only these processes; `infra` is all but ours.")] = None,
    *,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the data and logs of an earlier stack first.")] = False,
) -> None:
    """Start the stack, each process as soon as those it needs are healthy; what runs already stays."""
    stack = _stack(loop)
    members = stack.select(only or [])
    if any(not member.is_infra for member in members):
        record_loops(stack.places, stack.loops)
    if fresh:
        operations.forget(stack)
    started = time.monotonic()
    report = _Report()
    with Heartbeat(report.under_way):
        operations.bring_up(stack, members, report)
    console.print(f"[green]{len(members)} processes are healthy[/] ({time.monotonic() - started:.1f} s)")


@app.command()
def down() -> None:
    """Stop the stack, what needs others first, and wait until all have ended."""
    started = time.monotonic()
    report = _Report()
    stack = _stack()
    with Heartbeat(report.under_way):
        was_running = operations.take_down(stack, report)
    if was_running:
        console.print(f"[green]the stack is down[/] ({time.monotonic() - started:.1f} s)")
        return
    console.print(f"no stack is running in {escape(str(stack.places.var))}", highlight=False)
    if _name_others(stack, "down"):
        raise typer.Exit(1)


def _name_others(stack: Stack, command: str) -> bool:
    """Say which other stacks of this checkout are running, and how to reach them; whether there are any."""
    others = operations.running_elsewhere(stack.places)
    for each in others:
        remedy = escape(StackDirectories(each).make(command))
        console.print(f"another one is running in {escape(str(each))}: {remedy}", highlight=False, soft_wrap=True)
    return bool(others)


@app.command()
def clean() -> None:
    """Delete the data and logs of a stack that is down; refuses where it runs. Other stacks of the checkout stay."""
    operations.forget(_stack())


@app.command()
def status(names: Annotated[list[str] | None, typer.Argument(help="Only these processes.")] = None) -> None:
    """Show every process, its health and its address; exit with 1 when something is not healthy."""
    stack = _stack()
    lines = operations.look(stack, stack.select(names or []))
    table = Table(box=None, pad_edge=False)
    for heading in ("process", "state", "health", "pid", "uptime", "restarts", "ports"):
        justify: Literal["left", "right"] = "right" if heading in {"pid", "uptime", "restarts"} else "left"
        table.add_column(heading, justify=justify, no_wrap=heading not in {"health", "ports"})
    for line in lines:
        process = line.process
        table.add_row(
            line.name,
            process.state.lower() if process else "-",
            "[green]healthy[/]" if line.is_healthy else f"[red]{escape(line.reason)}[/]",
            str(process.pid) if process and process.pid else "-",
            _duration(process.uptime_s) if process and process.pid else "-",
            str(line.restarts),
            ", ".join(f"{meaning} {port}" for meaning, port in stack.ports.of(line.name).items()),
        )
    console.print(table)
    if all(line.process is None for line in lines):
        _name_others(stack, "status")
    if not all(line.is_healthy for line in lines):
        raise typer.Exit(1)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


@app.command()
def logs(
    name: Annotated[str | None, typer.Argument(help="The process; all of them when left out.")] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many lines of the past.")] = 100,
) -> None:
    """Show the end of a process's log, or the last ten lines of each."""
    stack = _stack()
    if name is None:
        for member in stack.members.values():
            console.rule(member.name)
            console.out(tail(log_path(stack.places, member.name), lines=min(lines, 10)), highlight=False)
        return
    (member,) = stack.select([name])
    path = log_path(stack.places, member.name)
    console.out(tail(path, lines=lines), highlight=False)
    if follow:
        for text in _growth(path):
            console.out(text, end="", highlight=False)


def _growth(path: Path) -> Iterator[str]:
    """What is appended to a file from now on, over rotations too, until the user interrupts."""
    position = path.stat().st_size if path.exists() else 0
    while True:
        time.sleep(FOLLOW_S)
        size = path.stat().st_size if path.exists() else 0
        if size < position:  # the log was rotated
            position = 0
        if size > position:
            with path.open("rb") as file:
                file.seek(position)
                content = file.read()
            position += len(content)
            yield content.decode(errors="replace")


@app.command()
def restart(name: Annotated[str, typer.Argument(help="The process.")]) -> None:
    """Stop one process and start it again."""
    stack, report = _stack(), _Report()
    with Heartbeat(report.under_way):
        for member in stack.select([name]):
            operations.restart(stack, member, report)


@app.command()
def stop(names: Annotated[list[str], typer.Argument(help="The processes.")]) -> None:
    """Stop some processes of the stack, which stay stopped until `start`, `restart` or `up`."""
    stack, report = _stack(), _Report()
    with Heartbeat(report.under_way):
        operations.stop(stack, stack.select(names), report)


@app.command()
def start(names: Annotated[list[str], typer.Argument(help="The processes.")]) -> None:
    """Start some processes of a stack that is running, and wait until they are healthy."""
    stack, report = _stack(), _Report()
    with Heartbeat(report.under_way):
        operations.start(stack, stack.select(names), report)


@app.command()
def env(loop: LoopOption = None) -> None:
    """Print the settings that make a process or client outside of the stack part of it, for `eval`."""
    stack = _stack(loop)
    for variable, value in services.shared_env(stack.ports, stack.places, stack.loops).items():
        console.out(f"export {variable}='{value}'", highlight=False)


def main() -> None:
    """Run the command line; what the user can put right is printed without a traceback."""
    try:
        app()
    except LocalStackError as error:
        Console(stderr=True).print("[bold red]gyre-local:[/]", escape(str(error)), highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
