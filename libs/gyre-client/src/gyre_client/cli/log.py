"""Commands about Kafka's logs: which one is read on in place of another."""

from enum import StrEnum
from typing import Annotated

import typer
from gyre_core.topics import TOPICS
from gyre_core.topics import topic as topic_name
from gyre_runtime import NotFound
from gyre_runtime.kafka import accept_log

from gyre_client.cli.session import LoopArgument, ask
from gyre_client.mesh import Mesh

app = typer.Typer(help="Logs of topics: accept another one.", no_args_is_help=True)


class Beginning(StrEnum):
    """Where an accepted log is read from."""

    START = "start"
    END = "end"


@app.callback()
def main() -> None:
    """Logs of topics."""


@app.command()
def accept(
    loop: LoopArgument,
    topic: Annotated[str, typer.Argument(help="Such as behavior.interactions.", show_default=False)],
    from_: Annotated[
        Beginning,
        typer.Option(
            "--from",
            help="start: count every record that it holds, as of a topic that was made anew;"
            " end: only those to come, as of one that lost its tail.",
            show_default=False,
        ),
    ],
) -> None:
    """Accept that a topic has another log than the one that was applied (LOG_REPLACED).

    What was applied stays; stream and archive read the log as it is now within seconds. An acceptance holds for this
    log alone: one that replaces it needs its own.
    """

    async def work(mesh: Mesh) -> dict[int, int]:
        if topic not in [each.suffix for each in TOPICS]:
            raise NotFound("TOPIC_UNKNOWN", f"topic {topic!r}: `gyre topics` lists those of a loop")
        name = topic_name(loop, topic)
        accepted = await accept_log(mesh.settings.kafka, name, from_start=from_ is Beginning.START)
        return {partition: each.offset for partition, each in accepted.items()}

    for partition, offset in sorted(ask("kafka", work).items()):
        typer.echo(f"partition {partition}: read from offset {offset} on")
