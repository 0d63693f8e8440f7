"""The tables of the monitor's database and their versions. Times are unix seconds unless the name says otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    and_,
    inspect,
    not_,
    select,
    text,
)

METADATA = MetaData()
_NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only for INTEGER


def _text(name: str, *, primary_key: bool = False) -> Column[str]:
    return Column(name, Text, nullable=False, primary_key=primary_key)


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, default=0, server_default="0")


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False, default=False)


def _unless_empty(name: str) -> dict[str, Any]:
    """Leave rows without a value out of an index."""
    return {f"{dialect}_where": text(f"{name} <> ''") for dialect in ("sqlite", "postgresql")}


META = Table("meta", METADATA, _text("name", primary_key=True), Column("value", Text, nullable=False))
"""`schema_version`, and `key_id`, which tells keys apart that user ids are hashed under, and no key from it."""

OFFSETS = Table(
    "offsets",
    METADATA,
    _text("topic", primary_key=True),
    Column("partition", Integer, primary_key=True),
    _count("next_offset"),
    _count("count_from"),
    Column("checkpoint", Text, nullable=False, default="", server_default=""),
)
"""What the other tables hold of each partition. Interactions before `count_from` count for no volume trigger.
`checkpoint` is a `gyre_runtime.checkpoints.Checkpoint` as text; empty where a release before stored the offset only."""

LOOPS = Table(
    "loops",
    METADATA,
    _text("loop", primary_key=True),
    _count("interactions_since_trigger"),
    Column("tipping", Text, nullable=False),
    Column("clock", Float),
    Column("schedule_from", Float),
)
"""Each loop between two triggers. `clock` is the newest event time that was not imported, `schedule_from` the last
trigger's time on the loop's clock, `tipping` the sampled traceparents of the newest counted interactions, as JSON."""

STAGES = Table(
    "stages",
    METADATA,
    _text("loop", primary_key=True),
    _text("stage", primary_key=True),
    _count("events"),
    Column("update_time", Float, nullable=False),
    _text("subject"),
)
"""How many events each stage has seen that no other table counts, and when the newest was handled (wall clock)."""

IMPRESSIONS = Table(
    "impressions",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
    _text("loop"),
    _text("request_id"),
    Column("user_key", LargeBinary(16), nullable=False),
    Column("event_time", Float, nullable=False),
    _text("version"),
    _text("arm"),
    _count("epoch"),
    Column("shown_items", Text, nullable=False),
    _flag("clicked"),
    _flag("converted"),
    Index("impressions_by_request", "loop", "request_id", "user_key", unique=True),
    Index("impressions_by_user", "loop", "user_key", "event_time"),
)
"""Answers of the gateway; `shown_items` are JSON. Imported and simulated ones are not kept."""

INTERACTIONS = Table(
    "interactions",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
    _text("loop"),
    _text("source"),
    _text("event_id"),
    _text("request_id"),
    Column("user_key", LargeBinary(16), nullable=False),
    _text("item_id"),
    _text("type"),
    Column("event_time", Float, nullable=False),
    Index("interactions_by_event", "loop", "event_id", "source", unique=True),
    Index("interactions_by_request", "loop", "request_id", **_unless_empty("request_id")),
    Index("interactions_by_user", "loop", "user_key", "event_time"),
)

ARMS = Table(
    "arms",
    METADATA,
    _text("loop", primary_key=True),
    _text("version", primary_key=True),
    _text("arm", primary_key=True),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    _count("impressions"),
    _count("clicked"),
    _count("converted"),
    _count("degraded"),
    Column("change_time", Float, nullable=False, server_default="0"),
)
"""Counts of answers. `change_time` is when a row last grew (wall clock): epochs begin anew with a new log of rollouts,
so that they tell neither which rows are old nor which are of the present log."""

LATENCIES = Table(
    "latencies",
    METADATA,
    _text("loop", primary_key=True),
    _text("version", primary_key=True),
    _text("arm", primary_key=True),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("bucket", Integer, primary_key=True),
    _count("answers"),
)
"""Counts of answers by the buckets of `domain.outcomes.LATENCY_BOUNDS_S`."""

TRIGGERS = Table(
    "triggers",
    METADATA,
    _text("loop", primary_key=True),
    _text("trigger_id", primary_key=True),
    Column("reason", Integer, nullable=False),
    Column("value", Float, nullable=False),
    Column("threshold", Float, nullable=False),
    Column("trigger_time", Float, nullable=False),
    Column("links", Text, nullable=False),
    _flag("sent"),
    _text("run_id"),
    _text("run_state"),
    _flag("closed"),
    Index("triggers_by_time", "loop", "trigger_time"),
)
"""Triggers of everybody. One of our own is written unsent and sent afterwards; `closed` says that no candidate will
come of it."""

CANDIDATES = Table(
    "candidates",
    METADATA,
    _text("loop", primary_key=True),
    _text("version", primary_key=True),
    _text("run_id"),
    _text("trigger_id"),
    Column("snapshots", Text, nullable=False),
    Column("candidate_time", Float, nullable=False),
    Column("layout", Text, nullable=False, server_default=""),
    Index("candidates_by_trigger", "loop", "trigger_id"),
)
"""`layout` is the hash of the feature layout that a candidate reads; empty where a release before stored it."""

ROLLOUTS = Table(
    "rollouts",
    METADATA,
    _text("loop", primary_key=True),
    _text("rollout_id", primary_key=True),
    _text("version"),
    Column("kind", Integer, nullable=False),
    Column("share", Float, nullable=False),
    _count("first_epoch"),
    _count("last_epoch"),
    Column("start_time", Float, nullable=False),
    Column("change_time", Float, nullable=False),
    Column("full_time", Float),
    _count("events"),
    Index("rollouts_by_version", "loop", "version"),
)
"""Rollouts as far as their events say; `full_time` is when the version first had all traffic."""

ALERTS = Table(
    "alerts",
    METADATA,
    _text("loop", primary_key=True),
    _text("alert_id", primary_key=True),
    _text("name"),
    Column("severity", Integer, nullable=False),
    Column("message", Text, nullable=False),
    Column("start_time", Float, nullable=False),
    Column("end_time", Float),
    Index("alerts_by_time", "loop", "start_time"),
)

SPANS = Table(
    "spans",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
    Column("trace_id", String(32), nullable=False),
    Column("span_id", String(16), nullable=False),
    Column("parent_span_id", String(16), nullable=False),
    _text("service"),
    Column("name", Text, nullable=False),
    Column("start_ns", BigInteger, nullable=False),
    Column("duration_s", Float, nullable=False),
    _flag("failed"),
    _flag("is_model"),
    _text("request_id"),
    _text("rollout_id"),
    Column("attributes", Text, nullable=False),
    Column("links", Text, nullable=False),
    Index("spans_by_id", "trace_id", "span_id", unique=True),
    Index("spans_by_request", "request_id", **_unless_empty("request_id")),
    Index("spans_by_rollout", "rollout_id", **_unless_empty("rollout_id")),
    Index("spans_by_flow", "is_model", "id"),
)
_OF_REQUEST = and_(SPANS.c.request_id != "", not_(SPANS.c.is_model))

TRACES = Table(
    "traces",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
    _text("loop"),
    Column("trace_id", String(32), nullable=False),
    Column("user_key", LargeBinary(16), nullable=False),
    Index("traces_by_user", "loop", "trace_id", "user_key", unique=True),
    Index("traces_of_user", "loop", "user_key"),
)
"""Whose answers and interactions are in a sampled trace, simulated and imported ones, too: its spans hold ids that
callers may have made from the user's, and stay longer than the answers."""

TOMBSTONES = Table(
    "tombstones",
    METADATA,
    _text("loop", primary_key=True),
    Column("forgotten_ns", BigInteger, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
)
"""The tombstones that were carried out, by time and offset, which name nobody; in a topic made anew, those of one
offset differ in time. They go after theirs has expired in Kafka."""


def _create(connection: Connection) -> None:
    METADATA.create_all(connection)


def _scope_requests(connection: Connection) -> None:
    """Let two users have one request id."""
    index = next(each for each in IMPRESSIONS.indexes if each.name == "impressions_by_request")
    index.drop(connection, checkfirst=True)
    index.create(connection)


def _drop_key(connection: Connection) -> None:
    """Take the key of user ids away from beside its hashes; `use_key` takes the hashes."""
    connection.execute(META.delete().where(META.c.name == "user_key"))


def _add_layouts(connection: Connection) -> None:
    """Let candidates have a layout."""
    if "layout" not in {each["name"] for each in inspect(connection).get_columns(CANDIDATES.name)}:
        connection.execute(text("ALTER TABLE candidates ADD COLUMN layout TEXT NOT NULL DEFAULT ''"))


def _add_checkpoints(connection: Connection) -> None:
    """Let offsets say which log they are of."""
    if "checkpoint" not in {each["name"] for each in inspect(connection).get_columns(OFFSETS.name)}:
        connection.execute(text("ALTER TABLE offsets ADD COLUMN checkpoint TEXT NOT NULL DEFAULT ''"))


def _add_traces(connection: Connection) -> None:
    """Let spans be found by their user; those whose answer is not known any more never would be."""
    METADATA.create_all(connection, [TRACES, TOMBSTONES])
    joined = IMPRESSIONS.join(SPANS, SPANS.c.request_id == IMPRESSIONS.c.request_id)
    columns = (IMPRESSIONS.c.loop, SPANS.c.trace_id, IMPRESSIONS.c.user_key)
    known = select(*columns).select_from(joined).where(SPANS.c.request_id != "").distinct()
    if not connection.scalar(select(TRACES.c.id).limit(1)):
        connection.execute(TRACES.insert().from_select(["loop", "trace_id", "user_key"], known))
    held = select(TRACES.c.trace_id)
    connection.execute(SPANS.delete().where(_OF_REQUEST, SPANS.c.trace_id.not_in(held)))


def _add_times(connection: Connection) -> None:
    """Let counts be forgotten by time; those of a release before count as of now, since nobody knows their age."""
    if "change_time" not in {each["name"] for each in inspect(connection).get_columns(ARMS.name)}:
        connection.execute(text("ALTER TABLE arms ADD COLUMN change_time FLOAT NOT NULL DEFAULT 0"))
        connection.execute(ARMS.update().values(change_time=time.time()))


MIGRATIONS: Sequence[Callable[[Connection], None]] = (
    _create,
    _scope_requests,
    _drop_key,
    _add_layouts,
    _add_checkpoints,
    _add_traces,
    _add_times,
)
"""What turns a database of version n into one of version n + 1; a new one runs all of them."""


class DatabaseTooNew(Exception):  # noqa: N818 - reads as what it says
    """The database was written by a newer monitor."""


def migrate(connection: Connection) -> None:
    """Bring the database to the newest version.

    Raises:
        DatabaseTooNew: it is newer than this program.
    """
    META.create(connection, checkfirst=True)
    stored = connection.scalar(select(META.c.value).where(META.c.name == "schema_version"))
    version = int(stored or 0)
    if version > len(MIGRATIONS):
        raise DatabaseTooNew(f"schema_version = {version}: this monitor knows versions up to {len(MIGRATIONS)}")
    for step in MIGRATIONS[version:]:
        step(connection)
    value = str(len(MIGRATIONS))
    if stored is None:
        connection.execute(META.insert(), {"name": "schema_version", "value": value})
    else:
        connection.execute(META.update().where(META.c.name == "schema_version"), {"value": value})


def version(connection: Connection) -> int:
    """The version of the tables."""
    return int(connection.execute(select(META.c.value).where(META.c.name == "schema_version")).scalar_one())


def use_key(connection: Connection, key_id: str) -> int:
    """Drop what was hashed under another key, in which nobody can be found any more; answer how many rows went.

    Spans of requests go, too, which are found by such a hash.

    Args:
        connection: within a transaction.
        key_id: tells the key that user ids are hashed under from others.
    """
    stored = connection.scalar(select(META.c.value).where(META.c.name == "key_id"))
    if stored == key_id:
        return 0
    hashed = (IMPRESSIONS, INTERACTIONS, TRACES)
    deleted = sum(connection.execute(table.delete()).rowcount for table in hashed)
    deleted += connection.execute(SPANS.delete().where(_OF_REQUEST)).rowcount
    connection.execute(META.delete().where(META.c.name == "key_id"))
    connection.execute(META.insert(), {"name": "key_id", "value": key_id})
    return deleted
