"""Erases a user's answers and interactions; the totals of arms name nobody and stay."""

from __future__ import annotations

from collections.abc import Sequence

from gyre_core.topics import topic
from sqlalchemy import Connection, delete, select

from gyre_monitor.store.database import upsert
from gyre_monitor.store.schema import IMPRESSIONS, INTERACTIONS, OFFSETS

TOMBSTONES = "privacy.tombstones"


def erase_user(connection: Connection, loop: str, users: Sequence[bytes], offset: int) -> int:
    """Delete a user's rows, unless the tombstone was handled before; answer how many went.

    A compacted topic is read from its beginning at each start: what a user does after the tombstone stays, since the
    tombstone's offset is stored with the deletion.

    Args:
        connection: within a transaction.
        loop: whose.
        users: hashes of the ids that the user is known by.
        offset: of the tombstone in its topic, which has one partition.
    """
    name = topic(loop, TOMBSTONES)
    stored = connection.scalar(select(OFFSETS.c.next_offset).where(OFFSETS.c.topic == name, OFFSETS.c.partition == 0))
    if stored is not None and offset < stored:
        return 0
    deleted = 0
    for table in (IMPRESSIONS, INTERACTIONS):
        deleted += connection.execute(delete(table).where(table.c.loop == loop, table.c.user_key.in_(users))).rowcount
    upsert(connection, OFFSETS, [{"topic": name, "partition": 0, "next_offset": offset + 1, "count_from": 0}])
    return deleted
