"""Erases a user's answers and interactions, and the spans of those requests; totals of arms name nobody and stay."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gyre_core.topics import topic
from sqlalchemy import Connection, delete, select

from gyre_monitor.store.database import chunks, upsert
from gyre_monitor.store.schema import IMPRESSIONS, INTERACTIONS, OFFSETS, SPANS
from gyre_monitor.store.spans import MAX_ID_CHARS

TOMBSTONES = "privacy.tombstones"


def erase_user(connection: Connection, loop: str, users: Sequence[bytes], offset: int) -> tuple[int, frozenset[str]]:
    """Delete a user's rows, unless the tombstone was handled before.

    A compacted topic is read from its beginning at each start: what a user does after the tombstone stays, since the
    tombstone's offset is stored with the deletion.

    Args:
        connection: within a transaction.
        loop: whose.
        users: hashes of the ids that the user is known by.
        offset: of the tombstone in its topic, which has one partition.

    Returns:
        Count of rows that went, and the ids of the user's requests, which callers may have made from the user's id.
    """
    name = topic(loop, TOMBSTONES)
    stored = connection.scalar(select(OFFSETS.c.next_offset).where(OFFSETS.c.topic == name, OFFSETS.c.partition == 0))
    if stored is not None and offset < stored:
        return 0, frozenset()
    deleted, requests = 0, set[str]()
    for table in (IMPRESSIONS, INTERACTIONS):
        own = (table.c.loop == loop, table.c.user_key.in_(users))
        requests.update(connection.scalars(select(table.c.request_id).where(*own)))
        deleted += connection.execute(delete(table).where(*own)).rowcount
    deleted += erase_spans(connection, requests)
    upsert(connection, OFFSETS, [{"topic": name, "partition": 0, "next_offset": offset + 1, "count_from": 0}])
    return deleted, frozenset(requests)


def erase_spans(connection: Connection, request_ids: Collection[str]) -> int:
    """Delete the spans of requests; answer how many went."""
    held = {each[:MAX_ID_CHARS] for each in request_ids if each}
    conditions = [SPANS.c.request_id.in_(some) for some in chunks(held)]
    return sum(connection.execute(delete(SPANS).where(each)).rowcount for each in conditions)
