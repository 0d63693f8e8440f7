"""The `gyre` command."""

import logging

import typer

from gyre_client.cli import dlq, features, importing, log, loop, maintenance, models, privacy, quality, requests

app = typer.Typer(help="Use and operate a Gyre mesh.", no_args_is_help=True, pretty_exceptions_enable=False)
for module in (loop, requests, models, importing, privacy, quality, maintenance):
    module.register(app)
app.add_typer(dlq.app, name="dlq")
app.add_typer(features.app, name="features")
app.add_typer(log.app, name="log")


def main() -> None:
    """Run the command line; libraries do not write into its output, errors are reported by the commands."""
    logging.getLogger().addHandler(logging.NullHandler())
    app()
