"""Rewrites a user out of the warehouse, old snapshots included, and says so in `privacy.erasures`."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from hashlib import sha256

from gyre.events.v1 import privacy_pb2 as privacy
from gyre_core.keyring import Keyring
from gyre_core.topics import topic
from gyre_privacy.pseudonyms import Pseudonyms, record_key
from gyre_runtime import Unavailable
from gyre_runtime.events import message_types
from gyre_runtime.expiring import Expiring
from gyre_runtime.kafka import Producer, read_compacted
from gyre_warehouse.tables import IMPRESSIONS, INTERACTIONS, USERS
from pyiceberg.expressions import In
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Snapshot

from gyre_features.warehouse.archive import Archive
from gyre_features.warehouse.maintenance import COMPACTION
from gyre_features.warehouse.orphans import delete_orphans_of
from gyre_features.warehouse.table_files import delete_files, files_of

ERASED = message_types(privacy.UserErased)
OF_USERS = (INTERACTIONS, IMPRESSIONS, USERS)
_REWRITES = (Operation.DELETE, Operation.OVERWRITE)
_RETRY_S = 2.0
_NOTE = "gyre.erasure."
_MAX_SNAPSHOTS = 30_000
"""How many of the newest snapshots of a table are named: those of three tables always fit a record."""
_LOG = logging.getLogger(__name__)


class Eraser:
    """Takes tombstones, erases one after the other, and publishes each; those published before are not done again.

    Args:
        archives: the one writer of each loop's tables; it must leave out what the tombstones cover.
        producer: for what was erased.
        kafka: host:port list.
        keyring: what ids are hashed under in tombstones; None where the process has no key file.
        kept_s: how long a loop's tombstones are kept, seconds, by loop; what was erased is remembered as long.
    """

    def __init__(
        self,
        archives: Mapping[str, Archive],
        producer: Producer,
        kafka: str,
        keyring: Keyring | None,
        kept_s: Mapping[str, float],
    ) -> None:
        self._archives, self._producer, self._kafka = archives, producer, kafka
        self._pseudonyms = Pseudonyms(keyring)
        self._waiting: asyncio.Queue[tuple[str, privacy.UserForgotten]] = asyncio.Queue()
        self._kept_s = kept_s
        self._done: dict[str, Expiring[str, int]] = {}

    def note(self, loop: str, message: privacy.UserForgotten) -> None:
        """Take a tombstone in."""
        self._waiting.put_nowait((loop, message))

    async def run(self) -> None:
        """Erase until cancelled; while the warehouse or Kafka do not answer, try again."""
        while True:
            loop, message = await self._waiting.get()
            if not await self._erased(loop, message):
                await asyncio.sleep(_RETRY_S)
                self._waiting.put_nowait((loop, message))

    async def _erased(self, loop: str, message: privacy.UserForgotten) -> bool:
        try:
            key, done = record_key(message), await self._done_of(loop)
            erased = done.get(key)
            if erased is not None and erased >= _ns(message.forgotten_time):
                return True
            earlier = None if erased is None else (await self._published(loop)).get(key)
            # A send that failed may have arrived all the same.
            if earlier is None or _ns(earlier.forgotten_time) < _ns(message.forgotten_time):
                answer = await self._erase(loop, message)
                if earlier is not None:
                    _add_earlier(answer, earlier)
                await self._producer.send(topic(loop, "privacy.erasures"), answer, key=key)
            await self._archives[loop].alone(loop, OF_USERS, partial(drop_notes, names={note_of(message)}))
        except (Unavailable, TimeoutError) as error:
            _LOG.warning("an erasure waits", extra={"loop": loop, "problem": str(error)})
            return False
        done.put(key, _ns(message.forgotten_time))
        return True

    async def _done_of(self, loop: str) -> Expiring[str, int]:
        """The tombstones of a loop that are done: by key the newest one's time, unix nanoseconds."""
        if loop not in self._done:
            done, published = Expiring[str, int](self._kept_s[loop]), await self._published(loop)
            for key, erased in published.items():
                done.put(key, _ns(erased.forgotten_time))
            # Of a process that was killed once it had published what it erased.
            if notes := {note_of(each) for each in published.values()}:
                await self._archives[loop].alone(loop, OF_USERS, partial(drop_notes, names=notes))
            self._done[loop] = done
        return self._done[loop]

    async def _published(self, loop: str) -> dict[str, privacy.UserErased]:
        events = await read_compacted(self._kafka, topic(loop, "privacy.erasures"), ERASED)
        return {key: event.message for key, event in events.items()}

    async def _erase(self, loop: str, message: privacy.UserForgotten) -> privacy.UserErased:
        answer = privacy.UserErased(
            user_id=message.user_id, user_hash=message.user_hash, forgotten_time=message.forgotten_time
        )
        wanted, names = self._pseudonyms.of_message(loop, message), self._pseudonyms.names
        since_ms, note = _ns(message.forgotten_time) // 1_000_000, note_of(message)

        def work(table: Table) -> tuple[int, list[int], int]:
            return erase_user(table, lambda user_id: names(loop, user_id) == wanted, since_ms=since_ms, note=note)

        for name, (rows, expired, found) in (await self._archives[loop].alone(loop, OF_USERS, work)).items():
            answer.rows[name] = rows
            answer.expired[name].ids.extend(expired[-_MAX_SNAPSHOTS:])
            answer.found_rows += found
        answer.erased_time.GetCurrentTime()
        _LOG.info("a user was erased", extra={"loop": loop, "rows": sum(answer.rows.values())})
        return answer


def _add_earlier(answer: privacy.UserErased, earlier: privacy.UserErased) -> None:
    """Count what an earlier tombstone of the user took, too: a repeated call reports all that went.

    Where nothing was left the time of the erasure stays, since what was read meanwhile held nothing of the user.
    """
    if not any(answer.rows.values()) and not any(each.ids for each in answer.expired.values()):
        answer.erased_time.CopyFrom(earlier.erased_time)
    for table, rows in earlier.rows.items():
        answer.rows[table] += rows
    for table, snapshots in earlier.expired.items():
        newer = answer.expired[table].ids
        known, room = set(newer), _MAX_SNAPSHOTS - len(newer)
        older = [each for each in snapshots.ids if each not in known]
        merged = [*older[max(len(older) - room, 0) :], *newer]
        del newer[:]
        newer.extend(merged)


def _ns(time: object) -> int:
    return int(time.ToNanoseconds())  # type: ignore[attr-defined]


def note_of(message: privacy.UserForgotten | privacy.UserErased) -> str:
    """The property of a table that says what has gone for a tombstone, until that is published; it names nobody."""
    return f"{_NOTE}{sha256(record_key(message).encode()).hexdigest()[:32]}.{_ns(message.forgotten_time)}"


def drop_notes(table: Table, names: Collection[str]) -> None:
    """Remove such properties where a table has them."""
    if held := set(names) & table.properties.keys():
        with table.transaction() as transaction:
            transaction.remove_properties(*held)


def _noted(table: Table, note: str) -> tuple[int, list[int]]:
    """Rows and snapshots that an earlier try took, which was cut short before that was published."""
    body = json.loads(table.properties.get(note, "{}"))
    return int(body.get("rows", 0)), list(body.get("expired", ()))


def erase_user(
    table: Table, is_user: Callable[[str], bool], *, since_ms: int, note: str = ""
) -> tuple[int, list[int], int]:
    """Rewrite a user's rows away and drop every older snapshot with the files that only such hold.

    The files go before the snapshots are expired, so that a crash between the two leaves what a second call finds.
    Files with rows of the user that no snapshot names, as a job leaves that was killed before its commit, go, too.

    Args:
        table: with a column `user_id`.
        is_user: whether a user id is that of the one who is erased; asked for every id of the table.
        since_ms: the tombstone's time, unix milliseconds: a rewrite after it may be one that a crash cut short.
        note: the property that is to say what goes, committed with it; see `note_of`. By default none does.

    Returns:
        Count of rows that went, ids of the snapshots that went, oldest first, both with those of earlier tries under
        the same note; count of rows that a search found afterwards.

    Raises:
        CommitFailedException: somebody else committed meanwhile; call again.
    """
    (rows, ids), (earlier_rows, earlier) = _rows_of(table, is_user), _noted(table, note)
    begun = note in table.properties or any(
        _rewrites(each) and each.timestamp_ms >= since_ms for each in table.snapshots()
    )
    if not rows and not begun:
        delete_orphans_of(table, is_user, gone=frozenset())
        return 0, [], 0
    holding = list(dict.fromkeys([*earlier, *(each.snapshot_id for each in _by_age(table))]))
    with table.transaction() as transaction:
        if rows:
            transaction.delete(In(term="user_id", literals=set(ids)))
        if note:
            body = {"rows": earlier_rows + rows, "expired": holding[-_MAX_SNAPSHOTS:]}
            transaction.set_properties({note: json.dumps(body)})
    # The snapshot that deletes names the files that it took away with their bounds, which are ids; the next does not.
    table.append(table.schema().as_arrow().empty_table())
    table.refresh()
    current = table.current_snapshot()
    old = [each for each in _by_age(table) if current is None or each.snapshot_id != current.snapshot_id]
    before, kept = files_of(table, old), files_of(table, [current] if current else [])
    delete_orphans_of(table, is_user, gone=frozenset(before[0] - kept[0]))
    delete_files(table, before, kept)
    expired = [each.snapshot_id for each in old]
    if expired:
        table.maintenance.expire_snapshots().by_ids(expired).commit()
        table.refresh()
    return earlier_rows + rows, list(dict.fromkeys([*earlier, *expired])), _rows_of(table, is_user)[0]


def _by_age(table: Table) -> list[Snapshot]:
    return sorted(table.snapshots(), key=lambda each: each.sequence_number or 0)


def _rows_of(table: Table, is_user: Callable[[str], bool]) -> tuple[int, list[str]]:
    """How many rows a user has, and under which ids: hashes can be found only by hashing every id of the table."""
    rows: Counter[str] = Counter()
    for batch in table.scan(selected_fields=("user_id",)).to_arrow_batch_reader():
        rows.update(each for each in batch.column("user_id").to_pylist() if each is not None)
    own = [user_id for user_id in rows if is_user(user_id)]
    return sum(rows[user_id] for user_id in own), own


def _rewrites(snapshot: Snapshot) -> bool:
    summary = snapshot.summary
    return summary is not None and summary.operation in _REWRITES and COMPACTION not in summary.additional_properties
