"""How a consumer works."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka import TopicPartition

from gyre_runtime import tracing
from gyre_runtime.admission import Admission
from gyre_runtime.events import ReceivedRecord
from gyre_runtime.kafka._positions import Stored

if TYPE_CHECKING:
    from gyre_runtime.kafka.consumer import Consumer

OnPartitions = Callable[["Consumer", tuple[TopicPartition, ...]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ConsumerOptions:
    """How a consumer works; the defaults suit most.

    Attributes:
        max_records: most events in one batch.
        from_beginning: where a group without offsets begins; False is the end.
        flow: `model` gives every batch an always sampled span; `request` one only when a producer's trace is sampled.
        dead_letters: whether what cannot be handled is sent to the dead-letter topic, asked for each record where it
            is a function. False where another group of the same topic does that: it is then counted and left out.
        admission: decides every record, and is given by `on_assigned` where a partition's clock stands. Without it
            only the topic's types and the proto's constraints do.
        stored: reads the checkpoints of a store, at which partitions then begin, whatever the group has committed; a
            log other than the one that was applied is not read. Without it a group begins at its committed offsets.
        on_assigned: awaited with new partitions before their first record; may `seek`, and `Consumer.hold` some.
        on_revoked: awaited when partitions go, after the batch under way.
    """

    max_records: int = 500
    from_beginning: bool = True
    flow: tracing.Flow = "request"
    dead_letters: bool | Callable[[ReceivedRecord], bool] = True
    admission: Admission | None = None
    stored: Stored | None = None
    on_assigned: OnPartitions | None = None
    on_revoked: OnPartitions | None = None
