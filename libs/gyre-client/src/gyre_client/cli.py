"""The `gyre` command."""

import typer

app = typer.Typer(help="Use and operate a Gyre mesh.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Use and operate a Gyre mesh."""


def main() -> None:
    """Run the command line."""
    app()
