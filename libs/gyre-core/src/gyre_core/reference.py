"""Markdown tables of the topics and keys, for the generated reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gyre_core.keys import KEYS
from gyre_core.topics import TOPICS, TopicDecl

_DAY_S = 86_400


def topics_table() -> str:
    """The declared topics as a markdown table."""
    head = ("topic", "key", "payload", "partitions", "kept", "dead letters", "owner", "holds")
    return _table(head, (_topic_row(decl) for decl in TOPICS))


def keys_table() -> str:
    """The declared Redis keys as a markdown table."""
    head = ("key", "holds", "owner", "lives")
    return _table(head, ((f"`{decl.pattern}`", decl.holds, decl.owner, decl.ttl) for decl in KEYS))


def _topic_row(decl: TopicDecl) -> tuple[str, ...]:
    partitions = "`shards.kafka_partitions`" if decl.partitions == "sharded" else str(decl.partitions)
    dead_letters = f"`<loop>.{decl.suffix}.dlq`" if decl.dead_letter else "none"
    name, payload = f"`<loop>.{decl.suffix}`", f"`{decl.payload}`"
    return (name, decl.key, payload, partitions, _kept(decl), dead_letters, decl.owner, decl.description)


def _kept(decl: TopicDecl) -> str:
    if decl.compacted:
        return "newest of each key"
    if decl.suffix.startswith("behavior."):
        return "`retention.behavior`"
    return "for ever" if decl.retention_s is None else f"{decl.retention_s / _DAY_S:g} days"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
