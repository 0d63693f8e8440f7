"""Commands about dead letters: what could not be read, and the way back."""

import json
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToJson
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import models_pb2 as models
from gyre.events.v1 import monitor_pb2 as monitor
from gyre_runtime import NotFound
from gyre_runtime.events import Unreadable, decode, header_text, message_types
from rich.text import Text

from gyre_client.cli.session import JsonOption, LoopArgument, ask, console, table
from gyre_client.dead_letters import DeadLetter, list_dead_letters, replay_dead_letters
from gyre_client.mesh import Mesh

app = typer.Typer(help="Dead letters: list, show, replay.", no_args_is_help=True)
TopicOption = Annotated[
    str | None, typer.Option("--topic", help="Only this topic, such as behavior.interactions.", show_default=False)
]
_TYPES = message_types(
    *(
        getattr(module, name)
        for module in (behavior, models, monitor)
        for name in module.DESCRIPTOR.message_types_by_name
    )
)


@app.command("list")
def list_letters(loop: LoopArgument, topic: TopicOption = None, *, as_json: JsonOption = False) -> None:
    """List the dead letters that Kafka still keeps."""
    letters = ask("kafka", lambda mesh: list_dead_letters(mesh.settings.kafka, loop, topic))
    if as_json:
        typer.echo(json.dumps([_facts(each) for each in letters], indent=2))
        return
    made = table("topic", "place", "when (UTC)", "reason", "error", "from", "by", "copies", "replayed")
    for each in letters:
        when = datetime.fromtimestamp(each.time, UTC).isoformat(sep=" ", timespec="seconds")[:-6]
        place, replayed = f"{each.partition}/{each.offset}", "yes" if each.replayed else "no"
        made.add_row(
            each.topic, place, when, each.reason, each.error, each.origin, each.group, str(each.copies), replayed
        )
    console().print(made if letters else Text(f"no dead letters in {loop}"))


def _facts(letter: DeadLetter) -> dict[str, object]:
    """What is known of a letter, without what its record holds, for JSON; `time` is ISO 8601."""
    names = ("topic", "partition", "offset", "reason", "error", "origin", "group", "copies", "replayed", "excerpt")
    return {"time": datetime.fromtimestamp(letter.time, UTC).isoformat()} | {
        name: getattr(letter, name) for name in names
    }


@app.command()
def show(
    loop: LoopArgument,
    topic: Annotated[str, typer.Argument(help="Such as behavior.interactions.", show_default=False)],
    place: Annotated[str, typer.Argument(help="Partition and offset as `list` shows them: 0/17.", show_default=False)],
) -> None:
    """Show one dead letter in full: headers, and the payload where it can be read."""

    async def work(mesh: Mesh) -> DeadLetter:
        for each in await list_dead_letters(mesh.settings.kafka, loop, topic):
            if f"{each.partition}/{each.offset}" == place:
                return each
        raise NotFound("NO_SUCH_LETTER", f"{topic} {place}: `gyre dlq list {loop}` shows what there is")

    letter = ask("kafka", work)
    typer.echo(f"{letter.reason}: {letter.error}\nfrom {letter.origin}, refused by {letter.group}")
    if letter.excerpt:
        typer.echo("the beginning of its record, which was too large: a replay reads all of it where it came from")
    for name, value in letter.headers:
        typer.echo(f"{name}: {header_text(value)}")
    typer.echo(f"key: {(letter.key or b'').decode('utf-8', 'replace')}")
    typer.echo(_payload(letter))


def _payload(letter: DeadLetter) -> str:
    try:
        return MessageToJson(decode(letter, _TYPES).message, preserving_proto_field_name=True)
    except Unreadable as error:
        return f"{error}\n{letter.value!r}"


@app.command()
def replay(loop: LoopArgument, topic: TopicOption = None) -> None:
    """Put every letter that was not replayed yet back into its topic, as it was.

    A record that was too large for its letter is read again where it came from; where it is gone, that is said.
    """
    counts: Counter[str] = Counter()
    gone: list[str] = []

    def note(name: str, count: int) -> None:
        counts[name] += count

    def note_gone(origin: str, reason: str) -> None:
        gone.append(f"{origin}: {reason}")

    total = ask(
        "kafka",
        lambda mesh: replay_dead_letters(mesh.settings.kafka, loop, topic, on_replay=note, on_gone=note_gone),
        doing=lambda: f"dead letters of {loop}: {counts.total():,} replayed",
    )
    for name, count in sorted(counts.items()):
        typer.echo(f"{name}: {count}")
    for each in gone:
        typer.echo(each)
    typer.echo(f"{total} replayed" + (f", {len(gone)} cannot be" if gone else ""))
