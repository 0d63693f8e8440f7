"""`gyre maintain`: the retention of a mesh on this machine."""

import importlib.util
import subprocess
import sys
from typing import Annotated

import typer

from gyre_client.cli.session import fail

OWNERS = ("trainer", "features", "deployer", "monitor")
"""The services that remove what they wrote; the trainer first, whose artefacts the warehouse's snapshots stay for."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(maintain)


def maintain(
    *, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False
) -> None:
    """Remove what `retention` of gyre.yaml lets go: each service's job on this machine, with this environment.

    What a live, last good or candidate model, or a training run under way, names is never removed.
    """
    installed = [name for name in OWNERS if importlib.util.find_spec(f"gyre_{name}") is not None]
    if not installed:
        fail("no service is installed here: run `maintain` in the services' own images")
    options = ["--dry-run"] if dry_run else []
    failed = []
    for name in installed:
        typer.echo(f"{name}:")
        command = [sys.executable, "-m", f"gyre_{name}", "maintain", *options]
        if subprocess.run(command, check=False).returncode:  # noqa: S603 - this interpreter and names of ours
            failed.append(name)
    if failed:
        fail(f"{', '.join(failed)}: not all was done; run it again")
