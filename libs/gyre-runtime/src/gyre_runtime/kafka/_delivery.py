"""What becomes of fetched records: decided one by one, refused ones dead-lettered, the rest handed over until it is in.

A handler is called again while it fails transiently; what it refuses for good is found by halving the batch.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gyre_runtime import tracing
from gyre_runtime.admission import Admission, Refusal
from gyre_runtime.checkpoints import Batch, Checkpoint, Place, RefusedRecord
from gyre_runtime.events import Event, ReceivedRecord
from gyre_runtime.kafka._names import topic_labels
from gyre_runtime.kafka.dead_letters import dead_letter
from gyre_runtime.kafka.producer import Producer
from gyre_runtime.metrics import instrument
from gyre_runtime.retrying import retry_transient

_LOG = logging.getLogger(__name__)
_MAX_LINKS = 16

OnBatch = Callable[[Batch], Awaitable[object]]


class StoreLostState(Exception):  # noqa: N818 - says what happened to the store
    """A store holds less than it did, as after a crash of Redis: read on from its checkpoints."""


class Abandoned(Exception):  # noqa: N818 - a signal, not an error
    """The batch is given up uncommitted: the consumer stops, or its partitions go."""


@dataclass(slots=True)
class ConsumerDelivery:
    """Hands records of one consumer over.

    Attributes:
        group: the consumer group.
        admission: decides records.
        letters: sends dead letters.
        writes_dead_letters: whether it does, for a record; otherwise another group of the same topics does.
        stopping: set when the consumer stops.
        revoking: set when its partitions go.
    """

    group: str
    admission: Admission
    letters: Producer
    writes_dead_letters: bool | Callable[[ReceivedRecord], bool] = True
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    revoking: asyncio.Event = field(default_factory=asyncio.Event)

    async def process(
        self, records: Sequence[Any], ends: dict[Place, Checkpoint], handler: OnBatch, *, one_by_one: bool
    ) -> None:
        """Decide records, have the dead letters acknowledged, and deliver the rest with the checkpoints after all.

        Args:
            records: as Kafka gave them.
            ends: the checkpoints after them, but for the partitions' clocks, which are put in.
            handler: takes batches.
            one_by_one: each with one event at most.

        Raises:
            Abandoned: the consumer stops or its partitions go while the handler fails transiently.
            StoreLostState: the handler's store holds less than it did.
        """
        if self.admission.is_slow:
            events, refused = await asyncio.to_thread(self._decide, records, ends)
        else:
            events, refused = self._decide(records, ends)
        ends.update({place: replace(end, clock=self.admission.clock(*place)) for place, end in ends.items()})
        await asyncio.gather(*(self._refuse(record, refusal.reason, refusal.detail) for record, refusal in refused))
        refusals = [
            RefusedRecord(each.topic, each.partition, each.offset + _base(each, ends), refusal.reason)
            for each, refusal in refused
        ]
        batch = Batch(events, refusals, ends)
        for part in batch.parts(1) if one_by_one else [batch]:
            await self._deliver(part, handler, records)

    def _decide(
        self, records: Sequence[Any], ends: Mapping[Place, Checkpoint]
    ) -> tuple[list[Event], list[tuple[Any, Refusal]]]:
        events: list[Event] = []
        refused: list[tuple[Any, Refusal]] = []
        decide, clock_of = self.admission.decide, self.admission.clock
        bases = {place: end.base for place, end in ends.items() if end.base}
        for record in records:
            decision = decide(record)
            if isinstance(decision, Event):
                clock = clock_of(record.topic, record.partition)
                if bases or clock.is_set:
                    offset = record.offset + bases.get((record.topic, record.partition), 0)
                    decision = decision.placed(offset, clock.newest)
                events.append(decision)
            elif decision is not None:
                refused.append((record, decision))
        return events, refused

    async def _deliver(self, batch: Batch, handler: OnBatch, records: Sequence[Any]) -> None:
        error = await self._attempt(batch, handler)
        if error is None:
            for topic, count in Counter(event.topic for event in batch.events).items():
                instrument("gyre_consumer_events_total").add(count, **topic_labels(topic))
            return
        if len(batch.events) > 1:
            for part in batch.parts((len(batch.events) + 1) // 2):
                await self._deliver(part, handler, records)
            return
        if not batch.events:
            raise error
        event = batch.events[0]
        reason = getattr(error, "reason", "HANDLER_FAILED")
        # By its place alone: an id may be made from a user's.
        place = {"topic": event.topic, "partition": event.partition, "offset": event.offset}
        _LOG.error("an event cannot be handled", exc_info=error, extra=place)
        record = next(each for each in records if _is_of(each, event, batch.ends))
        await self._refuse(record, reason, f"{type(error).__name__}: {error}")
        refusal = RefusedRecord(event.topic, event.partition, event.offset, reason)
        await self._deliver(Batch((), (*batch.refusals, refusal), batch.ends), handler, records)

    async def _attempt(self, batch: Batch, handler: OnBatch) -> Exception | None:
        """Call the handler until it succeeds or fails for good; return the permanent error."""

        def count(error: Exception) -> None:
            labels = topic_labels(next(iter(batch.ends))[0])
            instrument("gyre_consumer_retries_total").add(
                **labels, reason=getattr(error, "reason", type(error).__name__)
            )

        try:
            what = f"a batch for {self.group}"
            await retry_transient(lambda: handler(batch), what=what, on_retry=count, wait=self._back_off)
        except (StoreLostState, Abandoned):
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: who called sets the event aside
            return error
        return None

    async def _back_off(self, seconds: float) -> None:
        """Wait, unless the consumer stops or its partitions go.

        Raises:
            Abandoned: they do.
        """
        waits = [asyncio.create_task(each.wait()) for each in (self.stopping, self.revoking)]
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
        if done:
            raise Abandoned

    async def _refuse(self, record: Any, reason: str, error: str) -> None:
        writes = self.writes_dead_letters
        if writes(record) if callable(writes) else writes:
            await dead_letter(self.letters, record, reason=reason, error=error, group=self.group)
        else:
            instrument("gyre_consumer_skipped_total").add(**topic_labels(record.topic), reason=reason)


def _is_of(record: Any, event: Event, ends: Mapping[Place, Checkpoint]) -> bool:
    """Whether a record is the one that an event was decoded from."""
    offset = record.offset + _base(record, ends)
    return (record.topic, record.partition, offset) == (event.topic, event.partition, event.offset)


def _base(record: Any, ends: Mapping[Place, Checkpoint]) -> int:
    end = ends.get((record.topic, record.partition))
    return end.base if end is not None else 0


@contextlib.contextmanager
def batch_span(name: str, events: Sequence[Event], flow: tracing.Flow) -> Iterator[None]:
    """A span of some events: within their producer's trace where one is sampled, else linked to those that are."""
    parents = dict.fromkeys(event.traceparent for event in events if tracing.is_sampled(event.traceparent))
    if flow == "request" and not parents:
        yield
        return
    sampled = [parent for parent in parents if parent]
    # Of a batch with one sampled event, the span belongs into that event's trace, whatever came with it.
    parent = sampled[0] if len(sampled) == 1 else None
    with tracing.start_span(
        name,
        parent=parent,
        links=() if parent else sampled[:_MAX_LINKS],
        flow=flow,
        attributes={"messaging.system": "kafka", "messaging.batch.message_count": len(events)},
    ):
        yield
