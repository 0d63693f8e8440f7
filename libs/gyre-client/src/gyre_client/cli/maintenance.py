"""`gyre maintain`: the retention of a mesh on this machine."""

import importlib.util
import os
import subprocess
import sys
from typing import Annotated

import typer

from gyre_client.cli.session import fail

OWNERS = ("trainer", "features", "deployer", "monitor")
"""The services that remove what they wrote; the trainer first, whose artefacts the warehouse's snapshots stay for."""

_OF_CALLS = ("GYRE_TOKEN", "GYRE_TLS_")
"""How the variables begin that say how the mesh is called: no job calls it, and a server reads them as its own."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(maintain)


def maintain(
    *, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False
) -> None:
    """Remove what `retention` of gyre.yaml lets go: each service's job on this machine, with this environment.

    The settings of calls (the token and TLS) are left out of it. What a live, last good or candidate model, or a
    training run under way, names is never removed.
    """
    installed = [name for name in OWNERS if importlib.util.find_spec(f"gyre_{name}") is not None]
    if not installed:
        fail("no service is installed here: run `maintain` in the services' own images")
    options = ["--dry-run"] if dry_run else []
    env = {name: value for name, value in os.environ.items() if not name.startswith(_OF_CALLS)}
    failed = []
    for name in installed:
        typer.echo(f"{name}:")
        command = [sys.executable, "-m", f"gyre_{name}", "maintain", *options]
        if subprocess.run(command, check=False, env=env).returncode:  # noqa: S603 - this interpreter and names of ours
            failed.append(name)
    if failed:
        fail(f"{', '.join(failed)}: not all was done; run it again")
