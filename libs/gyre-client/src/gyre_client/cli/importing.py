"""The command that imports a file of history."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from gyre_core.spec import LoopSpec, SpecError, load_loop
from gyre_runtime import GyreError, load_settings
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from gyre_client.cli.session import explain, fail
from gyre_client.heartbeat import heartbeat_of
from gyre_client.importing import AMBIGUOUS, SKIPPED, FileImport, Mapping, load_mapping
from gyre_client.known_loops import known_loop
from gyre_client.settings import ClientSettings

_OF_ODD_TIMES = {
    AMBIGUOUS: "local times are there twice, as summer time ends: the first of the two was taken",
    SKIPPED: "local times are not there, as summer time begins: they were taken by the offset before it",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="import")(import_file)


def import_file(
    loop: Annotated[
        str, typer.Argument(help="A loop of GYRE_LOOPS or of the local stack, or a gyre.yaml.", show_default=False)
    ],
    file: Annotated[Path, typer.Argument(help="A .csv, .tsv, .jsonl or .parquet file.", show_default=False)],
    mapping: Annotated[Path, typer.Option(help="Says which column is what: docs/producers.md.", show_default=False)],
    rejects: Annotated[
        Path | None,
        typer.Option(help="Takes the rows that do not fit. Default: FILE.rejects.jsonl", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check the file, and send nothing.")] = False,
) -> None:
    """Import history from a file; a second import of the same rows adds nothing."""
    settings = load_settings(ClientSettings)
    try:
        spec = _spec(loop, settings)
        chosen = load_mapping(mapping, spec)
        taking = rejects or file.with_name(f"{file.name}.rejects.jsonl")
        imported = _run(spec, chosen, file, taking, None if dry_run else settings)
    except SpecError as error:
        for issue in error.issues:
            typer.echo(str(issue))
        raise typer.Exit(1) from error
    except OSError as error:
        fail(f"{error.filename or file}: cannot be read: {error.strerror or error}")
    except GyreError as error:
        fail(explain(error, service="kafka", address=settings.kafka))
    typer.echo(imported)


def _spec(loop: str, settings: ClientSettings) -> LoopSpec:
    if loop.endswith((".yaml", ".yml")):
        return load_loop(loop)
    return known_loop(settings, loop)


def _run(spec: LoopSpec, mapping: Mapping, file: Path, rejects: Path, settings: ClientSettings | None) -> str:
    columns = (TextColumn("{task.description:<8}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress, heartbeat_of(progress):
        reading, sending = progress.add_task("reading"), progress.add_task("sending", total=None)
        work = FileImport(
            spec,
            mapping,
            file,
            rejects,
            on_read=lambda done, total: progress.update(reading, completed=done, total=max(total, 1)),
            on_sent=lambda count, total: _advance(progress, sending, count, total),
        )
        done = work.check() if settings is None else asyncio.run(work.run(settings))
    text = f"{done.sent:,} events sent, {done.known:,} were there already, {done.rejected:,} rows rejected"
    if settings is None:
        text = f"dry run: {done.sent:,} events fit, {done.rejected:,} rows rejected; nothing was sent"
    lines = [f"{text}: see {rejects}" if done.rejected else text]
    if done.superseded:
        lines.append(f"{done.superseded:,} changes are superseded: the loop holds a later one of the same item or user")
    for name, rule in _OF_ODD_TIMES.items():
        if done.odd_times.get(name):
            lines.append(f"{done.odd_times[name]:,} {rule}")
    return "\n".join(lines)


def _advance(progress: Progress, task: TaskID, count: int, total: int) -> None:
    progress.update(task, advance=count, total=total)
