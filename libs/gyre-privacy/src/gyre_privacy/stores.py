"""The one declaration of the stores that may hold a person: what each holds, how it is erased, and until when it holds.

A search (`gyre_privacy.search`) names places; `store_of` says which declared store a place belongs to. A person who is
found in a place of no declared store is a fault of this list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gyre_core.models import QUARANTINE_FILE

KAFKA, REDIS, FILE = "kafka:", "redis:", "file:"
"""What the names of places begin with: a topic, a key, a file."""
AT_ONCE = "at once"


@dataclass(frozen=True, slots=True)
class StoreDecl:
    """The declaration, for searches and documentation, of a store that may hold a person; it erases nothing.

    Attributes:
        name: its name in reports.
        places: a pattern of the places that belong to it, such as `kafka:TOPIC`.
        holds: what of a person it holds.
        format: in which form, for whoever searches it.
        owner: the process that writes it.
        erased: how a person leaves it.
        until: until when it may hold a person after `DeleteEntity`.
    """

    name: str
    places: re.Pattern[str] = field(repr=False)
    holds: str
    format: str
    owner: str
    erased: str
    until: str


def _store(name: str, places: str, *, holds: str, written: tuple[str, str], erased: str, until: str) -> StoreDecl:
    """One row of the table below; `written` is the format and the owner."""
    return StoreDecl(name, re.compile(places), holds, written[0], written[1], erased, until)


_RECORDS = "Kafka records: key, headers, protobuf or JSON"
_SET_ASIDE = re.escape(QUARANTINE_FILE)

STORES: tuple[StoreDecl, ...] = (
    _store(
        "dead letters",
        rf"^{KAFKA}[^.]+\..+\.dlq$",
        holds="events of the user that were refused, with their key and headers",
        written=(_RECORDS, "features-stream"),
        erased="retention; replayed, they count no more while the tombstone stands",
        until="30 days",
    ),
    _store(
        "behaviour topics",
        rf"^{KAFKA}[^.]+\.behavior\.",
        holds="the user's impressions and interactions",
        written=(_RECORDS, "gateway, producers"),
        erased="retention; what the tombstone covers counts no more",
        until="`retention.behavior`",
    ),
    _store(
        "users' topic",
        rf"^{KAFKA}[^.]+\.catalog\.users$",
        holds="the user's fields, and a record without a value under the user's id, which deletes them",
        written=(_RECORDS, "producers"),
        erased="compaction, for which features-archive closes segments where nobody else writes",
        until="4 days: `max.compaction.lag.ms`, then `delete.retention.ms`, and the rounds of compaction between",
    ),
    _store(
        "tombstones",
        rf"^{KAFKA}[^.]+\.privacy\.(tombstones|erasures)$",
        holds="a hash of the user's id under the privacy key",
        written=(_RECORDS, "features-serve, features-archive"),
        erased="retention",
        until="the longest of `retention.behavior` and 30 days, and at most 7 days more",
    ),
    _store(
        "online store",
        rf"^{REDIS}",
        holds="the user's features and history under a key with the id; events that wait for fields of their items",
        written=("Redis strings, sorted sets, hashes", "features-stream"),
        erased="keys are deleted, in every maintained layout and in former formats; members are written again",
        until=AT_ONCE,
    ),
    _store(
        "online store on disk",
        r"^file:(.*/)?redis/|\.aof$|\.rdb$",
        holds="what was written to Redis: its append-only file or snapshot",
        written=("Redis protocol, RDB", "Redis"),
        erased="the file is written again from memory: `BGREWRITEAOF`, and `BGSAVE` where Redis makes snapshots",
        until="a minute; as Redis is set to save where Gyre may not ask it to, and a snapshot of a former start",
    ),
    _store(
        "warehouse rows",
        rf"^{FILE}.*\.parquet$",
        holds="the user's rows in the tables of impressions, interactions and users",
        written=("Parquet", "features-archive"),
        erased="rows are rewritten away, older snapshots expired, their files deleted",
        until=AT_ONCE,
    ),
    _store(
        "warehouse metadata",
        rf"^{FILE}.*(\.avro|\.metadata\.json)$",
        holds="bounds of columns, which are ids",
        written=("Avro, JSON", "features-archive"),
        erased="deleted with the snapshots that name them",
        until=AT_ONCE,
    ),
    _store(
        "monitor's database",
        rf"^{FILE}.*monitor\.db(-wal|-shm)?$",
        holds="the user's answers, interactions and traces under a hash of the id, and the spans of those requests",
        written=("SQLite with its write-ahead log", "monitor"),
        erased="rows are deleted and overwritten, the log is truncated; again a minute later, for spans come late",
        until="at once; request ids in spans of requests that showed nothing, until newer spans take their place",
    ),
    _store(
        "MLflow",
        rf"^{FILE}.*/[0-9a-f]{{32}}/artifacts/{_SET_ASIDE}$",
        holds="ids of the user's events that a training run set aside, as producers made them",
        written=("JSON lines", "trainer"),
        erased="the file is deleted from the records of all runs that read rows of the user",
        until="at once; where MLflow is away, once it is back",
    ),
    _store(
        "temporary files of training runs",
        rf"^{FILE}.*/trainer/job/",
        holds="rows that did not fit in memory",
        written=("DuckDB", "trainer"),
        erased="the folder is deleted with the end of the run, or when the next one starts",
        until="the end of a run under way",
    ),
    _store(
        "training artefacts",
        rf"^{FILE}.*/{_SET_ASIDE}$",
        holds="ids of the user's events that a training run set aside, as producers made them",
        written=("JSON lines", "trainer"),
        erased="the file is deleted from the artefacts of all runs that read rows of the user, refused ones, too",
        until="at once, or at the end of a run under way",
    ),
    _store(
        "Kafka's segments",
        rf"^{FILE}.*/\d{{20}}\.log(\.\w+)?$",
        holds="the records of the topics above, as they lie on the brokers' disks",
        written=("record batches, compressed or not", "Kafka"),
        erased="as their topics",
        until="as their topics, and a segment's length",
    ),
)
"""Every store, the more particular before the more general."""

FILES_OF_OPERATORS = (
    "a training set that was exported (`python -m gyre_trainer join`), and the `gyre-join-…` of a killed export",
    "files that `gyre import` read, and those that list what it refused",
    "backups of any store above",
)
"""What leaves Gyre's hands: whoever made the file has to delete it."""


def store_of(place: str) -> StoreDecl | None:
    """The first declared store that a place (`kafka:TOPIC`, `redis:KEY`, `file:PATH`) belongs to; None for none."""
    return next((each for each in STORES if each.places.search(place)), None)
