"""Markdown tables of the topics and keys, for the generated reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gyre_core.keys import KEYS
from gyre_core.topics import TOPICS, TopicDecl

_DAY_S = 86_400


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, each line ended; a bar inside a cell is escaped, and a line break is not."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def topics_table() -> str:
    """The declared topics as a Markdown table, as every loop has them; dead-letter topics have no rows."""
    head = (
        "topic",
        "key",
        "value",
        "partitions",
        "kept",
        "most bytes",
        "time",
        "dead letters",
        "written by",
        "what it holds",
    )
    return markdown_table(head, (_topic_row(decl) for decl in TOPICS))


def keys_table() -> str:
    """The declared Redis keys as a Markdown table, a row for each family of keys."""
    head = ("name", "key", "holds", "written by", "lives for")
    return markdown_table(head, ((decl.name, f"`{decl.pattern}`", decl.holds, decl.owner, decl.ttl) for decl in KEYS))


def _topic_row(decl: TopicDecl) -> tuple[str, ...]:
    return (
        f"`{decl.suffix}`",
        decl.key,
        f"`{decl.payload}`",
        str(decl.partitions),
        _retention(decl),
        f"{decl.max_bytes:,}",
        "of the append" if decl.append_time else "of the producer",
        "yes" if decl.dead_letter else "no",
        decl.owner,
        decl.description if decl.served else f"*Not served yet.* {decl.description}",
    )


def _retention(decl: TopicDecl) -> str:
    if decl.compacted and decl.retention_s is not None:
        return f"the newest of each key, {decl.retention_s / _DAY_S:g} days"
    if decl.compacted:
        return "the newest of each key"
    if decl.suffix.startswith("behavior."):
        return "as the loop says"
    return "for ever" if decl.retention_s is None else f"{decl.retention_s / _DAY_S:g} days"
