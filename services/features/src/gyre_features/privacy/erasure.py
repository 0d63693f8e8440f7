"""Rewrites a user out of the warehouse, old snapshots included, and says so in `privacy.erasures`."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256

from aiokafka.errors import KafkaError
from gyre.events.v1 import privacy_pb2 as privacy
from gyre_core.keyring import Keyring
from gyre_core.topics import topic
from gyre_privacy.pseudonyms import Pseudonyms, record_key
from gyre_privacy.tombstones import TOPIC, TYPES
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
_RELEASE_S = 5.0
"""How long a process that lets partitions go waits to know who was forgotten."""
_NOTE = "gyre.erasure."
_EVER_NS = 2**63
_MAX_SNAPSHOTS = 30_000
"""How many of the newest snapshots of a table are named: those of three tables always fit a record."""
_LOG = logging.getLogger(__name__)


class Eraser:
    """Takes tombstones in by `note`, and in `run` erases one after the other in the warehouse and publishes each.

    A tombstone from before the start that was published is done. One that comes later is erased here, too, though
    another process may have published it: rows that waited here were appended after that one had looked.

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
        self._waiting: asyncio.Queue[tuple[str, privacy.UserForgotten, bool]] = asyncio.Queue()
        self._done = {loop: Expiring[str, int](each) for loop, each in kept_s.items()}
        self._kept_s = kept_s
        self._before: dict[str, Expiring[str, int]] = {}
        self._with_notes: set[tuple[str, str]] = set()

    def note(self, loop: str, message: privacy.UserForgotten, *, is_from_before: bool = False) -> None:
        """Put a tombstone in the queue of `run`; nothing is erased here.

        Args:
            loop: its name.
            message: the tombstone.
            is_from_before: it was read before this process took rows in, so that none waits here that it covers.
        """
        self._waiting.put_nowait((loop, message, is_from_before))

    async def run(self) -> None:
        """Erase what `note` was given, one after the other, until cancelled.

        Where warehouse or Kafka are away try again.
        """
        while True:
            loop, message, is_from_before = await self._waiting.get()
            if not await self._erased(loop, message, is_from_before):
                await asyncio.sleep(_RETRY_S)
                self._waiting.put_nowait((loop, message, is_from_before))

    async def release(self, loop: str) -> None:
        """Append the rows that wait of a loop whose partitions go.

        Where an erasure is not done here, drop them unwritten.

        The next owner reads on from the table's offsets, and leaves out whom it knows to be forgotten. Rows that were
        appended here after another process has erased the user would stay, since that tombstone is done.
        """
        done = self._done[loop]
        try:
            found = await read_compacted(self._kafka, topic(loop, TOPIC), TYPES, timeout_s=_RELEASE_S)
            is_done = all(_holds(done, key, _ns(event.message.forgotten_time)) for key, event in found.items())
        except (Unavailable, TimeoutError, KafkaError):
            is_done = False
        await self._archives[loop].release(append=is_done)

    async def _erased(self, loop: str, message: privacy.UserForgotten, is_from_before: bool) -> bool:
        key, wanted, done = record_key(message), _ns(message.forgotten_time), self._done[loop]
        try:
            before = await self._published_before(loop)
            if not _holds(done, key, wanted):
                if not (is_from_before and _holds(before, key, wanted)):
                    await self._publish(loop, key, message)
                    self._with_notes.add((loop, key))
                done.put(key, wanted)
            if (loop, key) in self._with_notes:
                await self._drop_notes(loop, {note_prefix(message): _EVER_NS})
                self._with_notes.discard((loop, key))
        except (Unavailable, TimeoutError) as error:
            _LOG.warning("an erasure waits", extra={"loop": loop, "problem": str(error)})
            return False
        return True

    async def _publish(self, loop: str, key: str, message: privacy.UserForgotten) -> None:
        """Erase, and publish what went with what was published of the user before; nothing where that says it all."""
        # Also of another process; and a send that failed may have arrived all the same.
        earlier = (await self._published(loop)).get(key)
        if earlier is not None:
            await self._drop_notes(loop, {note_prefix(earlier): _ns(earlier.forgotten_time)})
        answer = await self._erase(loop, message)
        if earlier is not None:
            is_new = _ns(earlier.forgotten_time) < _ns(message.forgotten_time)
            if not is_new and not answer.found_rows and not _says_any(answer):
                return
            _add_earlier(answer, earlier)
        await self._producer.send(topic(loop, "privacy.erasures"), answer, key=key)

    async def _drop_notes(self, loop: str, until: Mapping[str, int]) -> None:
        await self._archives[loop].alone(loop, OF_USERS, partial(drop_notes, until=until))

    async def _published_before(self, loop: str) -> Expiring[str, int]:
        """What was published before the first tombstone came: by key the newest one's time, unix nanoseconds."""
        if loop not in self._before:
            before, published = Expiring[str, int](self._kept_s[loop]), await self._published(loop)
            for key, erased in published.items():
                before.put(key, _ns(erased.forgotten_time))
            # Of a process that was killed once it had published what it erased.
            if until := {note_prefix(each): _ns(each.forgotten_time) for each in published.values()}:
                await self._drop_notes(loop, until)
            self._before[loop] = before
        return self._before[loop]

    async def _published(self, loop: str) -> dict[str, privacy.UserErased]:
        events = await read_compacted(self._kafka, topic(loop, "privacy.erasures"), ERASED)
        return {key: event.message for key, event in events.items()}

    async def _erase(self, loop: str, message: privacy.UserForgotten) -> privacy.UserErased:
        answer = privacy.UserErased(
            user_id=message.user_id, user_hash=message.user_hash, forgotten_time=message.forgotten_time
        )
        wanted, of_user = self._pseudonyms.of_message(loop, message), self._pseudonyms.of_user
        forgotten_ns = _ns(message.forgotten_time)
        since_ms, note = forgotten_ns // 1_000_000, f"{note_prefix(message)}{forgotten_ns}"

        def work(table: Table) -> tuple[int, list[int], int]:
            return erase_user(table, lambda user_id: of_user(loop, user_id) == wanted, since_ms=since_ms, note=note)

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
    if not _says_any(answer):
        answer.erased_time.CopyFrom(earlier.erased_time)
    if _ns(answer.forgotten_time) < _ns(earlier.forgotten_time):
        answer.forgotten_time.CopyFrom(earlier.forgotten_time)
    for table, rows in earlier.rows.items():
        answer.rows[table] += rows
    for table, snapshots in earlier.expired.items():
        newer = answer.expired[table].ids
        known, room = set(newer), _MAX_SNAPSHOTS - len(newer)
        older = [each for each in snapshots.ids if each not in known]
        merged = [*older[max(len(older) - room, 0) :], *newer]
        del newer[:]
        newer.extend(merged)


def _says_any(answer: privacy.UserErased) -> bool:
    """Whether rows or snapshots went."""
    return any(answer.rows.values()) or any(each.ids for each in answer.expired.values())


def _holds(done: Expiring[str, int], key: str, wanted_ns: int) -> bool:
    """Whether a user's tombstone of that time, or a later one, is done."""
    found = done.get(key)
    return found is not None and found >= wanted_ns


def _ns(time: object) -> int:
    return int(time.ToNanoseconds())  # type: ignore[attr-defined]


def note_prefix(message: privacy.UserForgotten | privacy.UserErased) -> str:
    """The prefix of the names of a user's notes, a hash that names nobody.

    A note is a property of a table that says what has gone for a tombstone, until that is published. Its name ends with
    the tombstone's time, unix nanoseconds; a later tombstone of the user takes over what the note of an earlier says.
    """
    return f"{_NOTE}{sha256(record_key(message).encode()).hexdigest()[:32]}."


def drop_notes(table: Table, until: Mapping[str, int]) -> None:
    """Remove from a table's properties the notes of erasures that are published; no row changes.

    Args:
        table: whose properties; without such notes nothing is committed.
        until: by `note_prefix`, up to which tombstone's time a user's notes go, unix nanoseconds, included; notes of
            later tombstones and of other users stay.
    """
    held = [
        name
        for name in table.properties
        if name.startswith(_NOTE) and int(name.rpartition(".")[2]) <= until.get(name[: name.rindex(".") + 1], -1)
    ]
    if held:
        with table.transaction() as transaction:
            transaction.remove_properties(*held)


def _noted(table: Table, note: str) -> tuple[list[str], int, list[int]]:
    """A user's notes; rows and snapshots that went, as they say, in tries that were cut short before the report."""
    prefix = note[: note.rfind(".") + 1]
    names = sorted(name for name in table.properties if prefix and name.startswith(prefix))
    bodies = [json.loads(table.properties[name]) for name in names]
    ids = dict.fromkeys(each for body in bodies for each in body.get("expired", ()))
    return names, sum(int(body.get("rows", 0)) for body in bodies), list(ids)


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
        note: the property that is to say what goes, committed with it; see `note_prefix`. By default none does.

    Returns:
        Count of rows that went, ids of the snapshots that went, oldest first, both with those of earlier tries that
        the user's notes name; count of rows that a search found afterwards.

    Raises:
        CommitFailedException: somebody else committed meanwhile; call again.
    """
    (rows, ids), (notes, earlier_rows, earlier) = _rows_of(table, is_user), _noted(table, note)
    begun = bool(notes) or any(_rewrites(each) and each.timestamp_ms >= since_ms for each in table.snapshots())
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
            if others := [each for each in notes if each != note]:
                transaction.remove_properties(*others)
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
