"""Who is to be forgotten: the loops' tombstones, followed, and the question whether an event counts still."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack

from gyre.events.v1 import privacy_pb2 as privacy
from gyre_core.keyring import Keyring
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import View
from gyre_runtime.settings import KafkaSettings

from gyre_privacy.masking import OF_USERS
from gyre_privacy.pseudonyms import Pseudonyms

TYPES = message_types(privacy.UserForgotten)
OnTombstone = Callable[[str, privacy.UserForgotten, int], object]
"""Called with the loop, the tombstone and its offset."""


class Tombstones:
    """The tombstones of some loops; they live in a compacted topic, so that a lost Redis does not bring anybody back.

    Args:
        loops: by name.
        keyring: what ids are hashed under; None where the process has no key file.
        on_tombstone: told each loop and tombstone, in the topic's order, those from before the start, too.
    """

    def __init__(
        self, loops: Mapping[str, LoopSpec], keyring: Keyring | None, *, on_tombstone: OnTombstone = lambda *_: None
    ) -> None:
        self._loops, self._pseudonyms = dict(loops), Pseudonyms(keyring)
        self._times: dict[tuple[str, bytes], float] = {}
        self._on_tombstone = on_tombstone
        self._ready = asyncio.Event()

    async def ready(self) -> None:
        """Wait until every tombstone from before the start is known."""
        await self._ready.wait()

    def note(self, loop: str, message: privacy.UserForgotten, offset: int = 0) -> None:
        """Take a tombstone in.

        Raises:
            Precondition: it holds a hash, and there is no key to compare it with (PRIVACY_KEY_MISSING).
        """
        self._times[loop, self._pseudonyms.of_message(loop, message)] = message.forgotten_time.ToNanoseconds() / 1e9
        self._on_tombstone(loop, message, offset)

    def cover(self, event: Event) -> bool:
        """Whether an event is of a user who was forgotten after it.

        That is after it reached Kafka, or on the wall clock, after it happened: so neither a replay of the topic nor
        dead letters or a history that are sent again bring anybody back. What the user does later counts.
        """
        message = event.message
        if not self._times or not isinstance(message, OF_USERS):
            return False
        loop = event.topic.partition(".")[0]
        forgotten = self._times.get((loop, self._pseudonyms.names(loop, message.user_id)))
        if forgotten is None:
            return False
        happened = event.time if self._loops[loop].clock == "wall" else event.arrival_time
        return min(event.arrival_time or happened, happened) <= forgotten

    def without(self, events: Sequence[Event]) -> list[Event]:
        """The events that count."""
        return [event for event in events if not self.cover(event)] if self._times else list(events)

    async def follow(self, settings: KafkaSettings) -> None:
        """Follow the topics for as long as the process lives; raises what ends the following."""
        async with AsyncExitStack() as stack:
            views = [await stack.enter_async_context(self._view(settings, name)) for name in self._loops]
            for view in views:
                await view.ready()
            self._ready.set()
            await asyncio.gather(*(view.wait_for(lambda _: False) for view in views))

    def _view(self, settings: KafkaSettings, name: str) -> View:
        def changed(_key: str, event: Event | None) -> None:
            if event is not None:
                self.note(name, event.message, event.offset)

        return View(settings.kafka, topic(name, "privacy.tombstones"), TYPES, on_change=changed)
