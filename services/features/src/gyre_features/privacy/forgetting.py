"""Forgets users: a tombstone first, then the online store, then what the archive says of the warehouse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
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
    """What was done.

    Attributes:
        message: the tombstone.
        deleted_keys: in the online store.
        found_keys: that a look at all keys of the loop, and at what waits for late fields, found afterwards.
        erased: what the archive reported of the warehouse; None while it has not.
    """

    message: privacy.UserForgotten
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
    """Sends tombstones and waits for what comes of them.

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
        """Stay connected to Kafka for as long as the process lives; features are served without it."""
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

    async def forget(self, stores: Sequence[OnlineStore], user_id: str, *, sent_as: str) -> ForgottenUser:
        """Forget a user in all stores of a loop, whom producers may know by another id than the loop: `sent_as`.

        The online store is searched last, so that a batch that was under way when the tombstone came is seen, too.

        Raises:
            Precondition: there is no key file (PRIVACY_KEY_MISSING).
            Unavailable: Kafka or the online store do not answer; ask again.
        """
        loop = stores[0].spec.loop
        message = privacy.UserForgotten(user_hash=Pseudonyms(self.keyring).of(loop, user_id))
        call = current_call()
        # Half of the caller's time for a start that is under way; the other half is for the erasure.
        wait_s = _MIN_CONNECT_S if call is None else max(_MIN_CONNECT_S, call.remaining_s() / 2)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._connected.wait(), wait_s)
        if self._producer is None:
            raise Unavailable("KAFKA_UNAVAILABLE", "the tombstone cannot be written: Kafka does not answer")
        message.forgotten_time.FromNanoseconds(time.time_ns())
        with self._awaiting(loop, message) as awaited:
            await self._producer.send(topic(loop, "privacy.tombstones"), message, key=awaited.key)
            for key in dict.fromkeys((user_id, sent_as)):
                await self._producer.delete(topic(loop, "catalog.users"), key)
            deleted = await _delete(stores, user_id)
            await asyncio.wait([awaited.answer], timeout=self.wait_s)
        erased = awaited.answer.result() if awaited.answer.done() else None
        deleted += await _delete(stores, user_id)
        deleted += await stores[0].delete_keys(await stores[0].keys_of_user(user_id))
        await stores[0].rewrite_file()
        found = len(await stores[0].keys_of_user(user_id))
        found += sum([await store.count_late_events(user_id) for store in stores])
        return ForgottenUser(message, deleted, found, erased)

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


async def _delete(stores: Sequence[OnlineStore], user_id: str) -> int:
    """Delete a user from every layout's store, buffers of late events included; answer how many keys went."""
    for store in stores:
        await store.delete_late_events(user_id)
    return sum([await store.delete("user", user_id) for store in stores])
