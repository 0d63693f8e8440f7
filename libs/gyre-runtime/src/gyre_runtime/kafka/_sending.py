"""Records on their way to Kafka: each is acknowledged, sent again by a new producer, or given up with its reason.

A batch that the broker refuses leaves a hole in an idempotent producer's sequence: every later batch of the partition
fails with OutOfOrderSequenceNumber, for ever (aiokafka 0.14 counts a sequence on before the answer). The producer is
then replaced, and what it did not deliver goes again under the same id, in the same order. What a refused batch held
goes again one by one, so that only the record that is refused alone is given up. Each partition's records go again by
themselves, and what is new of that partition behind them: a partition that takes nothing holds up no other.
"""

import asyncio
import itertools
import logging
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTopicError,
    KafkaError,
    OutOfOrderSequenceNumber,
    PolicyViolationError,
    ProducerClosed,
    ProducerFenced,
    TopicAuthorizationFailedError,
    UnknownProducerId,
)

from gyre_runtime.errors import Precondition, Unavailable
from gyre_runtime.events import Headers
from gyre_runtime.kafka._connection import abandon, started_producer
from gyre_runtime.kafka._names import topic_labels
from gyre_runtime.metrics import instrument
from gyre_runtime.retrying import restart_for_ever

_LOG = logging.getLogger(__name__)
_FLUSH_S = 5.0
_LOCATE_S = 20.0
"""Longer than aiokafka asks for a topic's partitions; one that was ended meanwhile would wait for ever."""
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 5.0
_UNUSABLE = (
    OutOfOrderSequenceNumber,
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    ProducerClosed,
    ProducerFenced,
    UnknownProducerId,
)
"""The producer cannot go on; nothing is wrong with the record."""
_OF_THE_TOPIC = (
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    PolicyViolationError,
    TopicAuthorizationFailedError,
)
"""No record of the topic would be taken, alone or not."""


@dataclass(slots=True, eq=False)
class Outgoing:
    """A record to be sent.

    Attributes:
        topic: full name.
        key: of the record.
        value: None deletes the key.
        headers: as they are sent, again, too.
        on_settled: called once, with None when Kafka has the record, else with why it never will; raises nothing.
        partition: None for the one that the key gives, once the topic's partitions are known.
        number: its place in the order of sending.
        is_suspect: it was in a batch that the broker refused, so that it is sent alone.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    on_settled: Callable[[Exception | None], None]
    partition: int | None = None
    number: int = 0
    is_suspect: bool = False


_Place = tuple[str, int | None]
"""A topic partition; None where the record's is not known."""


class _Resending(NamedTuple):
    """The records of a partition that go again, in their order, and the task that sends them."""

    group: deque[Outgoing]
    task: asyncio.Task[None]


class ProducerDelivery:
    """Hands records to an aiokafka producer, and replaces that producer when it cannot go on.

    Args:
        bootstrap: Kafka's host:port list.
        client: its name for the broker.
    """

    def __init__(self, bootstrap: str, client: str) -> None:
        self._bootstrap, self._client = bootstrap, client
        self._kafka: AIOKafkaProducer | None = None
        self._numbers = itertools.count()
        self._in_flight: dict[int, Outgoing] = {}
        self._unsent: list[Outgoing] = []
        self._resending: dict[_Place, _Resending] = {}
        self._tried, self._usable, self._broken = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._reason = ""
        self._has_settled, self._backoff_s = True, 0.0
        self._mender: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect, however long the broker takes."""
        self._mender = asyncio.create_task(restart_for_ever("kafka-producer", self._mend), name="kafka-producer")

    async def flush(self) -> None:
        """Wait until all that was put is settled."""
        while self._in_flight or self._unsent or self._resending:
            await self._usable.wait()
            if self._resending:
                await asyncio.wait([each.task for each in self._resending.values()])
            await self.kafka.flush()
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """Disconnect; what is not delivered is settled with ProducerClosed."""
        if self._mender is not None:
            self._mender.cancel()
            await asyncio.gather(self._mender, return_exceptions=True)
        self._usable.clear()
        await self._stop_resending()
        left = [*self._in_flight.values(), *self._unsent]
        self._in_flight.clear()
        self._unsent.clear()
        for each in left:
            each.on_settled(ProducerClosed())
        if self._kafka is not None:
            await abandon(self._kafka, flush_s=0)

    @property
    def kafka(self) -> AIOKafkaProducer:
        """The aiokafka producer of the moment."""
        if self._kafka is None:
            raise Precondition("NOT_STARTED", "the producer is used outside of its context")
        return self._kafka

    async def connected(self) -> AIOKafkaProducer:
        """Return the aiokafka producer, waiting for the first attempt to connect.

        Raises:
            Unavailable: the broker has not been there since the start.
        """
        if self._mender is not None and self._kafka is None:
            await self._tried.wait()
            if self._kafka is None:
                raise Unavailable("KAFKA_UNAVAILABLE", f"Kafka at {self._bootstrap} has not answered yet")
        return self.kafka

    def partition_of(self, topic: str, key: bytes | None) -> int | None:
        """The partition that a record belongs to; None where the topic's partitions are not known yet."""
        kafka = self._kafka
        if kafka is None or not self._knows(topic):
            return None
        partition: int = kafka._partition(topic, None, None, None, key, None)  # noqa: SLF001 - as `send` chooses it
        return partition

    async def locate(self, topic: str) -> None:
        """Wait until a topic's partitions are known, however long the broker takes to be there.

        Raises:
            KafkaError: it has no such topic, or does not let us know.
            TimeoutError: it does not answer.
        """
        while True:
            await self._usable.wait()
            kafka = self.kafka
            try:
                async with asyncio.timeout(_LOCATE_S):
                    await kafka.partitions_for(topic)
                return
            except (KafkaError, TimeoutError):
                if kafka is self._kafka:
                    raise

    async def put(self, outgoing: Outgoing) -> None:
        """Send a record, in the order of the calls of its partition; returns when aiokafka has it, or it is settled."""
        outgoing.number = next(self._numbers)
        if self._mender is None:
            _ = self.kafka
        if outgoing.partition is None:
            outgoing.partition = self.partition_of(outgoing.topic, outgoing.key)
        if self._resending or not self._usable.is_set():
            await self._turn_of(outgoing)
        while not self._knows(outgoing.topic):
            if not await self._located(outgoing):
                return
            await self._turn_of(outgoing)
        await self._hand_over(outgoing)

    def _knows(self, topic: str) -> bool:
        return topic in self.kafka.client.cluster._partitions  # noqa: SLF001 - `topics()` copies them

    async def _located(self, outgoing: Outgoing) -> bool:
        """Wait until the partitions of a record's topic are known; where that takes too long the record is settled."""
        try:
            await self.locate(outgoing.topic)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this record's alone
            self._failed(outgoing, error, was_sent=False)
            return False
        return True

    async def _turn_of(self, outgoing: Outgoing) -> None:
        """Wait until there is a producer to send a record with, and what goes again of its partition is sent."""
        while True:
            await self._usable.wait()
            ahead = next((each for place, each in self._resending.items() if _is_behind(outgoing, place)), None)
            if ahead is None:
                return
            await asyncio.wait([ahead.task])

    async def _hand_over(self, outgoing: Outgoing) -> "asyncio.Future[Any] | None":
        try:
            sent: asyncio.Future[Any] = await self.kafka.send(
                outgoing.topic,
                outgoing.value,
                key=outgoing.key,
                headers=outgoing.headers,
                partition=outgoing.partition,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this record's alone
            self._failed(outgoing, error, was_sent=False)
            return None
        self._in_flight[outgoing.number] = outgoing
        sent.add_done_callback(lambda done: self._done(outgoing, done))
        return sent

    def _done(self, outgoing: Outgoing, sent: "asyncio.Future[Any]") -> None:
        error = ProducerClosed() if sent.cancelled() else sent.exception()
        if self._in_flight.pop(outgoing.number, None) is None:
            return  # settled by `stop`
        if error is None:
            self._has_settled = True
            outgoing.on_settled(None)
        else:
            self._failed(outgoing, error, was_sent=True)  # type: ignore[arg-type]  # no BaseException comes of a future

    def _failed(self, outgoing: Outgoing, error: Exception, *, was_sent: bool) -> None:
        if isinstance(error, _UNUSABLE) or type(error) is KafkaError:  # the bare class says that the sender died
            self._send_again(outgoing, error)
            return
        may_be_a_neighbour = was_sent and not outgoing.is_suspect and not getattr(error, "retriable", False)
        if may_be_a_neighbour and isinstance(error, KafkaError) and not isinstance(error, _OF_THE_TOPIC):
            outgoing.is_suspect = True
            self._send_again(outgoing, error)
            return
        self._has_settled = True
        place = {"topic": outgoing.topic, "problem": f"{type(error).__name__}: {error}"[:200]}
        _LOG.error("a record is given up", extra=place)
        outgoing.on_settled(error)

    def _send_again(self, outgoing: Outgoing, error: Exception) -> None:
        self._unsent.append(outgoing)
        self._reason = type(error).__name__
        self._usable.clear()
        self._broken.set()

    async def _mend(self) -> None:
        if self._kafka is None:
            self._kafka = await started_producer(self._bootstrap, self._client, on_failure=self._tried.set)
            self._tried.set()
            self._usable.set()
        while True:
            await self._broken.wait()
            await self._replace()

    async def _replace(self) -> None:
        """Replace the producer and send again what the old one did not deliver."""
        self._backoff_s = 0.0 if self._has_settled else min(max(2 * self._backoff_s, _FIRST_BACKOFF_S), _MAX_BACKOFF_S)
        self._has_settled = False
        await asyncio.sleep(self._backoff_s)
        await abandon(self.kafka, flush_s=_FLUSH_S)
        self._kafka = await started_producer(self._bootstrap, self._client)
        instrument("gyre_producer_replaced_total").add(reason=self._reason)
        facts = {"reason": self._reason, "records": len(self._unsent)}
        _LOG.warning("the producer is replaced: what was not acknowledged is sent again", extra=facts)
        await self._stop_resending()
        self._broken.clear()
        groups: dict[_Place, deque[Outgoing]] = defaultdict(deque)
        for each in sorted(self._unsent, key=lambda each: each.number):
            groups[each.topic, each.partition].append(each)
        self._unsent.clear()
        for place, group in groups.items():
            name = f"kafka-producer-resend-{place[0]}"
            task = asyncio.create_task(self._resend_all(place, group), name=name)
            self._resending[place] = _Resending(group, task)
        self._usable.set()

    async def _stop_resending(self) -> None:
        """End what sends again; what it has not sent is unsent."""
        stopped = dict(self._resending)
        for each in stopped.values():
            each.task.cancel()
        await asyncio.gather(*(each.task for each in stopped.values()), return_exceptions=True)
        for place in stopped.keys() & self._resending.keys():  # it had not begun
            self._unsent.extend(self._resending.pop(place).group)

    async def _resend_all(self, place: _Place, group: deque[Outgoing]) -> None:
        """Send the records of a partition again, in their order, until the producer cannot go on."""
        sent = set[asyncio.Future[Any]]()
        try:
            while group and not self._broken.is_set():
                outgoing = group[0]
                instrument("gyre_producer_resent_total").add(**topic_labels(outgoing.topic))
                if outgoing.is_suspect and sent:
                    await asyncio.wait(sent)
                made = None
                if self._knows(outgoing.topic) or await self._located(outgoing):
                    made = await self._hand_over(outgoing)
                group.popleft()
                if made is not None:
                    sent = {each for each in sent if not each.done()} | {made}
                if outgoing.is_suspect and made is not None:
                    await asyncio.wait([made])
        finally:
            self._unsent.extend(group)
            self._resending.pop(place, None)


def _is_behind(outgoing: Outgoing, place: _Place) -> bool:
    """Whether a record may have to wait for those of a partition, None where either's is not known."""
    return outgoing.topic == place[0] and (outgoing.partition == place[1] or None in (outgoing.partition, place[1]))
