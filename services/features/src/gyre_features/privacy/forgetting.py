"""Forgets users: a tombstone first, then the online store, then what the archive says of the warehouse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from gyre.events.v1 import privacy_pb2 as privacy
from gyre_core.keyring import Keyring
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_privacy.pseudonyms import Pseudonyms, record_key
from gyre_runtime import Unavailable
from gyre_runtime.context import current_call
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Producer, View, ensure_topics
from gyre_runtime.settings import KafkaSettings

from gyre_features.online.store import OnlineStore

_MIN_CONNECT_S = 2.0
_TYPES = message_types(privacy.UserErased)


@dataclass(frozen=True, slots=True)
class ForgottenUser:
    """What was done to forget a user.

    Attributes:
        forgotten_ns: the tombstones' time, unix nanoseconds.
        deleted_keys: count of keys deleted in the online store; events taken out of buffers are not counted.
        found_keys: that a look at all keys of the loop, and at what waits for late fields, found afterwards.
        erased: the rows that the archive reported of the warehouse; None where it did not in time, and still will.
    """

    forgotten_ns: int
    deleted_keys: int
    found_keys: int
    erased: privacy.UserErased | None


@dataclass(frozen=True, slots=True)
class _Awaited:
    """The erasure of a tombstone, or of a later one of the same user, that a call waits for.

    Attributes:
        key: of the record.
        since_ns: the tombstone's time, unix nanoseconds.
        answer: what the archive reported.
    """

    loop: str
    key: str
    since_ns: int
    answer: asyncio.Future[privacy.UserErased]

    def note(self, loop: str, key: str, message: privacy.UserErased) -> None:
        """Take what the archive reported of some tombstone."""
        is_wanted = (loop, key) == (self.loop, self.key) and message.forgotten_time.ToNanoseconds() >= self.since_ns
        if is_wanted and not self.answer.done():
            self.answer.set_result(message)


@dataclass
class Forgetting:
    """Forgets users: sends tombstones, deletes online, and waits for what the archive erases; needs `follow` beside it.

    Attributes:
        loops: by name.
        wait_s: how long the archive is waited for, seconds.
        keyring: what ids are hashed under in tombstones; None where the process has no key file.
    """

    loops: Mapping[str, LoopSpec]
    wait_s: float
    keyring: Keyring | None
    _producer: Producer | None = field(default=None, init=False)
    _connected: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _awaited: list[_Awaited] = field(default_factory=list, init=False)

    async def follow(self, settings: KafkaSettings) -> None:
        """Stay connected to Kafka until cancelled; `forget` waits for it, and features are served without it."""
        await ensure_topics(settings, self.loops.values())
        async with AsyncExitStack() as stack:
            producer = await stack.enter_async_context(Producer(settings.kafka, source="gyre/features"))
            views = [await stack.enter_async_context(self._view(settings, name)) for name in self.loops]
            self._producer = producer
            self._connected.set()
            await asyncio.gather(*(view.wait_for(lambda _: False) for view in views))

    def _view(self, settings: KafkaSettings, loop: str) -> View:
        """Follows what the archive erases; only what a call waits for is kept."""

        def note(key: str, event: Event | None) -> None:
            if event is not None:
                for each in self._awaited:
                    each.note(loop, key, event.message)

        return View(settings.kafka, topic(loop, "privacy.erasures"), _TYPES, on_change=note, holds_events=False)

    async def forget(self, stores: Sequence[OnlineStore], user_id: str) -> ForgottenUser:
        """Forget a user in all stores of a loop, at least one, under the id as it was sent and under its hash.

        Sends a tombstone for each, deletes what the online store and `catalog.users` hold, and waits up to `wait_s` for
        the archive, which erases the warehouse. A repeated call for a user who is forgotten does it all again.

        The online store is searched last, so that a batch that was under way when the tombstones came is seen, too.

        Raises:
            Precondition: there is no key file (PRIVACY_KEY_MISSING).
            Unavailable: Kafka or the online store do not answer; ask again.
        """
        loop, pseudonyms, now_ns = stores[0].spec.loop, Pseudonyms(self.keyring), time.time_ns()
        ids = pseudonyms.forms(user_id)
        producer = await self._connection()
        with ExitStack() as stack:
            awaited = []
            for each in ids:
                message = privacy.UserForgotten(user_hash=pseudonyms.of(loop, each))
                message.forgotten_time.FromNanoseconds(now_ns)
                awaited.append(stack.enter_context(self._awaiting(loop, message)))
                await producer.send(topic(loop, "privacy.tombstones"), message, key=awaited[-1].key)
            for each in ids:
                await producer.delete(topic(loop, "catalog.users"), each)
            deleted = await _delete(stores, ids)
            await asyncio.wait([each.answer for each in awaited], timeout=self.wait_s)
        deleted += await _delete(stores, ids)
        deleted += await stores[0].delete_keys(await stores[0].keys_of_user(*ids))
        await stores[0].rewrite_file()
        found = len(await stores[0].keys_of_user(*ids))
        found += sum([await store.count_late_events(each) for store in stores for each in ids])
        return ForgottenUser(now_ns, deleted, found, _all_erased([each.answer for each in awaited]))

    async def _connection(self) -> Producer:
        """The producer, which a start that is under way is waited for.

        Raises:
            Unavailable: Kafka does not answer.
        """
        call = current_call()
        # Half of the caller's time for a start that is under way; the other half is for the erasure.
        wait_s = _MIN_CONNECT_S if call is None else max(_MIN_CONNECT_S, call.remaining_s() / 2)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._connected.wait(), wait_s)
        if self._producer is None:
            raise Unavailable("KAFKA_UNAVAILABLE", "the tombstone cannot be written: Kafka does not answer")
        return self._producer

    @contextmanager
    def _awaiting(self, loop: str, message: privacy.UserForgotten) -> Iterator[_Awaited]:
        """Wait for what becomes of a tombstone inside of the block, from before it is sent."""
        answer: asyncio.Future[privacy.UserErased] = asyncio.get_running_loop().create_future()
        awaited = _Awaited(loop, record_key(message), message.forgotten_time.ToNanoseconds(), answer)
        self._awaited.append(awaited)
        try:
            yield awaited
        finally:
            self._awaited.remove(awaited)


def _all_erased(answers: Sequence[asyncio.Future[privacy.UserErased]]) -> privacy.UserErased | None:
    """What the archive reported of all tombstones together; None while it has not reported of some."""
    whole = privacy.UserErased()
    for answer in answers:
        if not answer.done() or answer.cancelled():
            return None
        erased = answer.result()
        for table, rows in erased.rows.items():
            whole.rows[table] += rows
        whole.found_rows += erased.found_rows
    return whole


async def _delete(stores: Sequence[OnlineStore], ids: Sequence[str]) -> int:
    """Delete a user from every layout's store, buffers of late events included; answer how many keys went.

    Batches that were prepared before are refused from here on, so that none of them brings the user back.
    """
    # The token is one for all layouts of the loop.
    await max(stores, key=lambda store: store.shards).refuse_prepared_batches()
    for store in stores:
        for each in ids:
            await store.delete_late_events(each)
    return sum([await store.delete("user", each) for store in stores for each in ids])
