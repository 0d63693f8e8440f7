"""Records that aiokafka cannot decode, in a faust stream: a message says why, so that they are refused as elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from faust.transport.drivers.aiokafka import Consumer, Transport
from faust.types.tuples import ConsumerMessage
from gyre_runtime.kafka import UndecodableRecord

if TYPE_CHECKING:
    from faust.types import TP

__all__ = ["UndecodableMessage", "mark_undecodable"]


class UndecodableMessage(ConsumerMessage):
    """Stands for an `UndecodableRecord` in a stream; nothing of what it holds is known.

    Attributes:
        problem: why it cannot be decoded.
    """

    __slots__ = ("problem",)

    problem: str


class _Consumer(Consumer):
    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        if not isinstance(record, UndecodableRecord):
            return super()._to_message(tp, record)
        message = UndecodableMessage(
            record.topic, record.partition, record.offset, 0.0, record.timestamp_type, [], None, b"", None, tp=tp,
            generation_id=self.app.consumer_generation_id,
        )  # fmt: skip
        message.problem = record.problem
        return message


class _Transport(Transport):
    Consumer = _Consumer


def mark_undecodable(app: Any) -> None:
    """Let the agents of a faust app get an `UndecodableMessage` for each record that cannot be decoded."""
    app.transport = _Transport(app.conf.broker_consumer, app)
