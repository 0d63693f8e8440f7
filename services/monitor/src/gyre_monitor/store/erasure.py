"""Erases a user's answers and interactions, and the spans of those requests; totals of arms name nobody and stay."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, delete, not_, select

from gyre_monitor.store.database import chunks
from gyre_monitor.store.schema import IMPRESSIONS, INTERACTIONS, SPANS, TOMBSTONES, TRACES
from gyre_monitor.store.spans import MAX_ID_CHARS


@dataclass(frozen=True, slots=True)
class UserErasure:
    """What a tombstone says.

    Attributes:
        loop: whose.
        users: hashes of the ids that the user is known by.
        forgotten_ns: the tombstone's time, unix nanoseconds.
        offset: of the tombstone in its topic.
        expired_ns: tombstones from before this are in Kafka no more, unix nanoseconds.
    """

    loop: str
    users: Sequence[bytes]
    forgotten_ns: int
    offset: int
    expired_ns: int = 0


def erase_user(connection: Connection, forgotten: UserErasure) -> tuple[int, frozenset[str]]:
    """Delete a user's rows, unless this tombstone was handled before.

    A compacted topic is read from its beginning at each start: what a user does after the tombstone stays, since the
    tombstone's time and offset are stored with the deletion.

    Args:
        connection: within a transaction.
        forgotten: who is to go.

    Returns:
        Count of rows that went, and the ids of the user's requests and traces, which callers may have made from the
        user's id.
    """
    loop, users = forgotten.loop, forgotten.users
    handled = TOMBSTONES.c
    own = (handled.loop == loop, handled.forgotten_ns == forgotten.forgotten_ns, handled.offset == forgotten.offset)
    if connection.scalar(select(handled.loop).where(*own)) is not None:
        return 0, frozenset()
    deleted, ids = 0, set[str]()
    for table, column in (
        (IMPRESSIONS, IMPRESSIONS.c.request_id),
        (INTERACTIONS, INTERACTIONS.c.request_id),
        (TRACES, TRACES.c.trace_id),
    ):
        of_user = (table.c.loop == loop, table.c.user_key.in_(users))
        ids.update(connection.scalars(select(column).where(*of_user)))
        deleted += connection.execute(delete(table).where(*of_user)).rowcount
    deleted += erase_spans(connection, ids)
    connection.execute(delete(TOMBSTONES).where(handled.loop == loop, handled.forgotten_ns < forgotten.expired_ns))
    row = {"loop": loop, "forgotten_ns": forgotten.forgotten_ns, "offset": forgotten.offset}
    connection.execute(TOMBSTONES.insert(), row)
    return deleted, frozenset(ids)


def erase_spans(connection: Connection, ids: Collection[str]) -> int:
    """Delete the spans of requests and traces; answer how many went. The flow of models names nobody and stays.

    Args:
        connection: within a transaction.
        ids: of requests and traces.
    """
    deleted = 0
    for some in chunks({each[:MAX_ID_CHARS] for each in ids if each}):
        of_trace = and_(SPANS.c.trace_id.in_(some), not_(SPANS.c.is_model))
        for condition in (SPANS.c.request_id.in_(some), of_trace):
            deleted += connection.execute(delete(SPANS).where(condition)).rowcount
    return deleted
