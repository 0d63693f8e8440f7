"""Forgets users: a tombstone first, then the online store, then what the archive says of the warehouse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

from gyre.events.v1 import privacy_pb2 as privacy
from gyre_core.keyring import Keyring
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_privacy.pseudonyms import Pseudonyms, record_key
from gyre_runtime import Unavailable
from gyre_runtime.context import current_call
from gyre_runtime.events import message_types
from gyre_runtime.kafka import Producer, View, ensure_topics
from gyre_runtime.settings import KafkaSettings

from gyre_features.online.store import OnlineStore

_LOOK_AGAIN_S = 0.2
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
    _erasures: dict[str, View] = field(default_factory=dict, init=False)

    async def follow(self, settings: KafkaSettings) -> None:
        """Stay connected to Kafka for as long as the process lives; features are served without it."""
        await ensure_topics(settings, self.loops.values())
        async with AsyncExitStack() as stack:
            producer = await stack.enter_async_context(Producer(settings.kafka, source="gyre/features"))
            for name in self.loops:
                view = View(settings.kafka, topic(name, "privacy.erasures"), _TYPES)
                self._erasures[name] = await stack.enter_async_context(view)
            self._producer = producer
            self._connected.set()
            await asyncio.gather(*(view.wait_for(lambda _: False) for view in self._erasures.values()))

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
        await self._producer.send(topic(loop, "privacy.tombstones"), message, key=record_key(message))
        for key in dict.fromkeys((user_id, sent_as)):
            await self._producer.delete(topic(loop, "catalog.users"), key)
        deleted = await _delete(stores, user_id)
        erased = await self._erased(loop, message)
        deleted += await _delete(stores, user_id)
        deleted += await stores[0].delete_keys(await stores[0].keys_of_user(user_id))
        await stores[0].rewrite_file()
        found = len(await stores[0].keys_of_user(user_id))
        found += sum([await store.count_late_events(user_id) for store in stores])
        return ForgottenUser(message, deleted, found, erased)

    async def _erased(self, loop: str, message: privacy.UserForgotten) -> privacy.UserErased | None:
        """What the archive reported of this tombstone or a later one."""
        view, wanted = self._erasures[loop], message.forgotten_time.ToNanoseconds()
        end = time.monotonic() + self.wait_s
        while True:
            event = view.get(record_key(message))
            if event is not None and event.message.forgotten_time.ToNanoseconds() >= wanted:
                published: privacy.UserErased = event.message
                return published
            if time.monotonic() >= end:
                return None
            await asyncio.sleep(_LOOK_AGAIN_S)


async def _delete(stores: Sequence[OnlineStore], user_id: str) -> int:
    """Delete a user from every layout's store, buffers of late events included; answer how many keys went."""
    for store in stores:
        await store.delete_late_events(user_id)
    return sum([await store.delete("user", user_id) for store in stores])
