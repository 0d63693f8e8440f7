"""Records that wait to be handed to Kafka's client, by topic partition: what one does not take holds up no other."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from gyre_runtime.events import Record

_LOG = logging.getLogger(__name__)
PartitionOf = Callable[[str, bytes | None], int | None]


class Queued(NamedTuple):
    """A record that waits for its turn, with its bytes, and who wants to know whether it arrived."""

    topic: str
    record: Record
    size: int
    on_settled: Callable[[bool], None] | None = None


Forward = Callable[[Queued, int], Awaitable[None]]
GiveUp = Callable[[Queued, str], None]


@dataclass(slots=True, eq=False)
class _Queue:
    """The records of one partition in their order, their bytes, and the task that hands them over."""

    records: deque[Queued] = field(default_factory=deque)
    size: int = 0
    task: asyncio.Task[None] | None = None

    def append(self, queued: Queued) -> None:
        self.records.append(queued)
        self.size += queued.size

    def take(self, *, newest: bool = False) -> Queued:
        queued = self.records.pop() if newest else self.records.popleft()
        self.size -= queued.size
        return queued


class PartitionQueues:
    """A queue for each topic partition that records wait for; each is emptied by a task of its own, in order.

    Records of a topic whose partitions are not known yet wait together, and part once they are.

    Args:
        partition_of: the partition of a record, by topic and key; None where the topic's are not known yet.
        locate: awaited until a topic's partitions are known; raises where that takes too long.
        forward: awaited with each record and its partition, one after the other; settles it sooner or later.
        give_up: called with each record that is not forwarded, and why.
        gather_s: how long queues wait for more before they are emptied, all at once, so that one request has it all.
    """

    def __init__(
        self,
        partition_of: PartitionOf,
        locate: Callable[[str], Awaitable[None]],
        forward: Forward,
        give_up: GiveUp,
        gather_s: float,
    ) -> None:
        self._partition_of, self._locate = partition_of, locate
        self._forward, self._give_up, self._gather_s = forward, give_up, gather_s
        self._queues: dict[tuple[str, int | None], _Queue] = {}
        self._gathered: asyncio.Event | None = None

    def put(self, queued: Queued, partition: int | None) -> None:
        """Let a record wait behind those of its partition; `partition` is what `partition_of` said."""
        place = (queued.topic, partition)
        queue = self._queues.get(place)
        if queue is None:
            queue = self._queues[place] = _Queue()
            queue.task = asyncio.create_task(self._empty(queue, *place), name=f"kafka-producer-{queued.topic}")
        queue.append(queued)

    def partition_of(self, topic: str, key: bytes | None) -> int | None:
        """The partition that a record waits for; None also behind records whose partition was not known."""
        return None if (topic, None) in self._queues else self._partition_of(topic, key)

    def make_room(self, topic: str, partition: int | None, size: int, *, by_bytes: bool) -> bool:
        """Give up the newest record of the longest queue for one of a shorter queue.

        Where partitions do not take what they get, they share the bounds evenly, and the others find room (*longest
        queue drop*; Suter et al., Design Considerations for Supporting TCP with Per-flow Queueing, INFOCOM 1998).

        Args:
            topic: of the record that needs room, with `partition` and `size`.
            partition: as `partition_of` said.
            size: its bytes.
            by_bytes: whether bytes are short, or else records.

        Returns:
            False where its own queue would be as long: it is the one to be given up.
        """

        def length(queue: _Queue) -> int:
            return queue.size if by_bytes else len(queue.records)

        own = self._queues.get((topic, partition))
        longest = max(self._queues.values(), key=length, default=None)
        needed = (length(own) if own else 0) + (size if by_bytes else 1)
        if longest is None or longest is own or length(longest) <= needed:
            return False
        self._give_up(longest.take(newest=True), "QUEUE_FULL")
        return True

    async def close(self) -> None:
        """Give up all that waits."""
        queues = list(self._queues.values())
        tasks = [queue.task for queue in queues if queue.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._queues.clear()
        for queue in queues:
            while queue.records:
                self._give_up(queue.take(), "CLOSED")

    async def _empty(self, queue: _Queue, topic: str, partition: int | None) -> None:
        """Hand the records of a queue over until there are none."""
        if self._gather_s:
            await self._gather()
        while queue.records:
            if partition is None:
                await self._part(queue, topic)
            else:
                await self._hand_over(queue.take(), partition)
        if self._queues.get((topic, partition)) is queue:
            del self._queues[topic, partition]

    async def _gather(self) -> None:
        """Wait for more, until those that wait already have waited long enough."""
        if self._gathered is None:
            self._gathered = asyncio.Event()
            asyncio.get_running_loop().call_later(self._gather_s, self._end_gathering)
        await self._gathered.wait()

    def _end_gathering(self) -> None:
        if self._gathered is not None:
            self._gathered.set()
            self._gathered = None

    async def _hand_over(self, queued: Queued, partition: int) -> None:
        try:
            await self._forward(queued, partition)
        except asyncio.CancelledError:
            self._give_up(queued, "CLOSED")
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, those behind it go on
            _LOG.error("a record is not handed over", exc_info=error, extra={"topic": queued.topic})
            self._give_up(queued, type(error).__name__)

    async def _part(self, queue: _Queue, topic: str) -> None:
        """Put the records of a topic into the queues of their partitions, or give up those that wait for too long."""
        waiting = len(queue.records)
        try:
            await self._locate(topic)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this topic's alone
            extra = {"topic": topic, "records": waiting, "problem": f"{type(error).__name__}: {error}"[:200]}
            _LOG.error("records are given up: the partitions of their topic are not known", extra=extra)
            for _ in range(min(waiting, len(queue.records))):
                self._give_up(queue.take(), type(error).__name__)
            return
        del self._queues[topic, None]
        while queue.records:
            queued = queue.take()
            self.put(queued, self._partition_of(topic, queued.record.key))
