"""Runs a demo from its scenario: progress on the way, the report at the end, the exit code."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable

from gyre_client import ClientSettings, Mesh, load_settings
from gyre_client.heartbeat import heartbeat_of
from gyre_core.heartbeat import Heartbeat
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from demo_loop.report import report
from demo_loop.scenario import Scenario
from demo_loop.turn import Turn

_PIPE_WIDTH = 140


def run(read: Callable[[], Scenario]) -> int:
    """Turn the loop once on the mesh of the environment; 0 only if every stage really happened.

    Args:
        read: reads the data.
    """
    logging.getLogger().addHandler(logging.NullHandler())
    settings = load_settings(ClientSettings)
    with Heartbeat(lambda: ["reading the data"]):
        scenario = read()
    return asyncio.run(_run(scenario, settings))


async def _run(scenario: Scenario, settings: ClientSettings) -> int:
    started = time.monotonic()
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    async with Mesh(settings) as mesh:
        with Progress(*columns, console=console) as progress, heartbeat_of(progress):
            turn = Turn(scenario, mesh, progress)
            await turn.go()
        with Heartbeat(lambda: ["measuring what was answered"]):
            happened = await report(turn, console)
    outcome = "[green]the loop turned[/]" if happened else "[red]the loop did not turn: see the stages marked ✗[/]"
    console.print(f"{outcome} ({time.monotonic() - started:.0f} s)")
    return 0 if happened else 1
