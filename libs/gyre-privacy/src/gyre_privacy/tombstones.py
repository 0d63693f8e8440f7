"""Who is to be forgotten: the loops' tombstones, followed, and the question whether an event counts still."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

from gyre.events.v1 import privacy_pb2 as privacy
from gyre_core.keyring import Keyring
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared, tombstones_kept_s, topic
from gyre_runtime.errors import Precondition, Unavailable
from gyre_runtime.events import Event, message_types
from gyre_runtime.expiring import Expiring
from gyre_runtime.kafka import View, create_topics
from gyre_runtime.settings import KafkaSettings

from gyre_privacy.masking import OF_USERS
from gyre_privacy.pseudonyms import Pseudonyms

TYPES = message_types(privacy.UserForgotten)
TOPIC = "privacy.tombstones"
_TIMEOUT_S = 30.0
OnTombstone = Callable[[str, privacy.UserForgotten, int], object]
"""Called with the loop, the tombstone and its offset."""


class Tombstones:
    """The tombstones of some loops: of each forgotten user the record that says since when.

    They live in a compacted topic, so that a lost Redis does not bring anybody back. None is known before `follow` or
    `following` runs, which read them.

    Args:
        loops: by name.
        keyring: what ids are hashed under; None where the process has no key file.
        on_tombstone: called with each loop and tombstone, in the topic's order, those from before the start, too.
        clock: monotonic, seconds; a tombstone is let go once its topic has deleted it.
    """

    def __init__(
        self,
        loops: Mapping[str, LoopSpec],
        keyring: Keyring | None,
        *,
        on_tombstone: OnTombstone = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loops, self._pseudonyms = dict(loops), Pseudonyms(keyring)
        self._times: dict[str, Expiring[bytes, float]] = {
            loop: Expiring(tombstones_kept_s(spec), clock=clock) for loop, spec in loops.items()
        }
        self._are_any = False
        self._on_tombstone = on_tombstone
        self._views: dict[str, View] = {}
        self._ready = asyncio.Event()

    async def ready(self) -> None:
        """Wait, without a limit, until every tombstone from before the start of `follow` is known."""
        await self._ready.wait()

    @property
    def are_ready(self) -> bool:
        """Whether every tombstone from before the start of `follow` is known."""
        return self._ready.is_set()

    async def catch_up(self, loop: str) -> None:
        """Wait until every tombstone of a loop that Kafka has now is known.

        Raises:
            Unavailable: Kafka does not say within 30 s who was forgotten (TOMBSTONES_UNKNOWN).
        """
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._ready.wait()
                await self._views[loop].catch_up()
        except TimeoutError:
            message = f"Kafka does not say within {_TIMEOUT_S:g} s who was forgotten"
            raise Unavailable("TOMBSTONES_UNKNOWN", message) from None

    def note(self, loop: str, message: privacy.UserForgotten, offset: int = 0) -> None:
        """Remember a tombstone in place of an earlier one of its user, and call `on_tombstone`; Kafka gets nothing.

        Raises:
            Precondition: it holds a hash, and there is no key to compare it with (PRIVACY_KEY_MISSING).
        """
        user, self._are_any = self._pseudonyms.of_message(loop, message), True
        self._times[loop].put(user, message.forgotten_time.ToNanoseconds() / 1e9)
        self._on_tombstone(loop, message, offset)

    def exist(self, loop: str) -> bool:
        """Whether any tombstone of a loop is known."""
        return len(self._times[loop]) > 0

    def cover(self, event: Event) -> bool:
        """Whether a known tombstone covers an event: it is of a user who was forgotten later than the event.

        It suffices that Kafka had the event before the user was forgotten, so that a replay of the topic brings nobody
        back; or, on the wall clock, that it happened before, so that neither dead letters nor a history that are sent
        again do. What the user does later counts.
        """
        message = event.message
        if not self._are_any or not isinstance(message, OF_USERS):
            return False
        loop = event.topic.partition(".")[0]
        forgotten = self._times[loop].get(self._pseudonyms.of_user(loop, message.user_id))
        if forgotten is None:
            return False
        happened = event.time if self._loops[loop].clock == "wall" else event.arrival_time
        return min(event.arrival_time or happened, happened) <= forgotten

    def without(self, events: Sequence[Event]) -> list[Event]:
        """The events that no known tombstone covers, in their order."""
        return [event for event in events if not self.cover(event)] if self._are_any else list(events)

    async def follow(self, settings: KafkaSettings) -> None:
        """Read the topics and go on as they grow, until it is cancelled; it waits for Kafka without a limit.

        Raises:
            Precondition: a tombstone holds a hash, and there is no key to compare it with (PRIVACY_KEY_MISSING).
        """
        refusal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with AsyncExitStack() as stack:
            self._views = {
                name: await stack.enter_async_context(self._view(settings, name, refusal)) for name in self._loops
            }
            ready = asyncio.gather(*(view.ready() for view in self._views.values()))
            stack.callback(ready.cancel)
            waited: list[asyncio.Future[Any]] = [ready, refusal]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not refusal.done():
                self._ready.set()
            await refusal

    @asynccontextmanager
    async def following(self, settings: KafkaSettings) -> AsyncIterator[Self]:
        """Follow the topics inside of the block, for a job: it begins once every tombstone from before is known.

        A topic that is not there is created, as the processes do.

        Raises:
            Precondition: there is no key to compare hashes with (PRIVACY_KEY_MISSING).
            Unavailable: Kafka does not say within 30 s who was forgotten (TOMBSTONES_UNKNOWN).
        """
        following = asyncio.create_task(self._follow_created(settings))
        ready = asyncio.create_task(self.ready())
        try:
            await asyncio.wait([following, ready], timeout=_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
            if not ready.done():
                message = f"Kafka at {settings.kafka} does not say within {_TIMEOUT_S:g} s who was forgotten"
                raise Unavailable("TOMBSTONES_UNKNOWN", message)
            yield self
            if following.done():
                following.result()
        finally:
            for task in (following, ready):
                task.cancel()
            await asyncio.gather(following, ready, return_exceptions=True)

    async def _follow_created(self, settings: KafkaSettings) -> None:
        names = {topic(loop, TOPIC) for loop in self._loops}
        topics = [each for spec in self._loops.values() for each in declared(spec) if each.name in names]
        await create_topics(settings.kafka, topics, replication=settings.kafka_replication)
        await self.follow(settings)

    def _view(self, settings: KafkaSettings, name: str, refusal: asyncio.Future[None]) -> View:
        def changed(_key: str, event: Event | None) -> None:
            if event is None:
                return
            try:
                self.note(name, event.message, event.offset)
            except Precondition as error:
                if not refusal.done():
                    refusal.set_exception(error)

        return View(settings.kafka, topic(name, TOPIC), TYPES, on_change=changed, holds_events=False)
