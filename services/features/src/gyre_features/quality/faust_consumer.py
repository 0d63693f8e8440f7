"""What faust's consumer lacks: it asks whether a log is the same, commits checkpoints, and says what is undecodable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types.tuples import TP, ConsumerMessage
from gyre_runtime.kafka import UndecodableRecord

if TYPE_CHECKING:
    from gyre_features.quality.logs import QualityLogs

__all__ = ["ReceivedFromFaust", "watch_logs"]


class UndecodableMessage(ConsumerMessage):
    """Stands for an `UndecodableRecord` in a stream: with its place, an empty value, and no key, headers or time.

    Attributes:
        problem: why it cannot be decoded.
    """

    __slots__ = ("problem",)

    problem: str


@dataclass(slots=True)
class ReceivedFromFaust:
    """A record as aiokafka gave it to faust, whose own messages hold Kafka's time in seconds.

    Attributes:
        timestamp: of the record, unix milliseconds; 0 where it has none.
        timestamp_type: 0 for the producer's time, 1 for the broker's.
        problem: why the record could not be decoded; empty where it could.
    """

    topic: str
    partition: int
    offset: int
    key: Any
    value: Any
    headers: Any
    timestamp: int
    timestamp_type: int
    problem: str = ""

    @classmethod
    def of(cls, message: Any) -> Self:
        """The record that a faust message was made of; `problem` is set where that is an `UndecodableMessage`."""
        place = message.topic, message.partition, message.offset
        timestamp_ms = round((message.timestamp or 0) * 1000)
        problem = message.problem if isinstance(message, UndecodableMessage) else ""
        content = message.key, message.value, message.headers
        return cls(*place, *content, timestamp_ms, message.timestamp_type or 0, problem)


class _Thread(AIOKafkaConsumerThread):
    consumer: _Consumer

    def _create_consumer(self, loop: Any) -> Any:
        """Read what is committed only, as every other reader: an aborted record counts for nobody."""
        consumer = super()._create_consumer(loop)
        consumer._isolation_level = "read_committed"  # noqa: SLF001 - faust asks for it in its own transactions alone
        commit, logs = consumer.commit, self.consumer.logs

        async def commit_checkpoints(offsets: Mapping[Any, OffsetAndMetadata]) -> None:
            """Commit with checkpoints as metadata, of which faust has none."""
            await commit(
                {
                    place: OffsetAndMetadata(each.offset, logs.metadata((place.topic, place.partition), each.offset))
                    for place, each in offsets.items()
                }
            )

        consumer.commit = commit_checkpoints
        return consumer


class _Consumer(Consumer):
    logs: QualityLogs

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        """Begin every assigned partition where the group has committed, or where its log says otherwise."""
        await super().perform_seek()
        committed = {(each.topic, each.partition): self._committed_offset.get(each) or 0 for each in self.assignment()}
        for place, offset in (await self.logs.starts(committed)).items():
            await self.seek(TP(*place), offset)

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


def watch_logs(app: Any, logs: QualityLogs) -> None:
    """Replace an app's transport by ours; call it before the app starts.

    Its consumer then begins where `logs.starts` says, reads committed records only, commits `logs.metadata` with each
    offset, and gives agents an `UndecodableMessage` for what cannot be decoded.
    """
    app.transport = _Transport(app.conf.broker_consumer, app)
    app.consumer.logs = logs
