"""Reports of gateways, as the deployer knows them: whatever their clocks say, each counts once, as long as it holds."""

import time
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic
from gyre.events.v1.models_pb2 import GatewayReport
from gyre_core.topics import topic
from gyre_deployer.adapters.views import KafkaGateways
from gyre_deployer.domain.observation import lagging
from gyre_local.testing import eventually
from gyre_runtime.events import Event, Record, encode
from gyre_runtime.kafka._names import started_admin

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(120)]
LEASE_S = 60.0


def made(loop: str, instance: str, *, epoch: int, ahead_s: float = 0.0, requests: int = 0) -> tuple[Record, float]:
    """A report of a gateway whose clock is so far ahead, and its time on that clock, unix seconds."""
    now = time.time() + ahead_s
    message = GatewayReport(loop=loop, instance=instance, epoch=epoch, lease_s=LEASE_S)
    message.report_time.FromMilliseconds(round(now * 1000))
    message.versions.add(version="v1", requests=requests)
    return encode(message, source="tests", key=instance), now


async def send(kafka: str, loop: str, *reports: tuple[Record, float]) -> None:
    """Send reports as gateways do, the times of their records being those of their clocks."""
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        for record, at in reports:
            await producer.send_and_wait(
                topic(loop, "models.gateway-reports"),
                record.value,
                key=record.key,
                headers=record.headers,
                timestamp_ms=round(at * 1000),
            )


async def are_read(gateways: KafkaGateways, **epochs: int) -> None:
    """Wait until the newest reports of some gateways are known."""

    def are_known() -> bool:
        return epochs.items() <= {each.instance: each.epoch for each in gateways.reports()}.items()

    await eventually(are_known, timeout_s=30, message=f"the reports {epochs} come")


@pytest.mark.parametrize("clocks", [(0.0, 180.0, -400.0), (-400.0, -300.0, -200.0)])
async def test_gateways_with_wrong_clocks_are_waited_for(
    kafka: str, loop: str, topics: None, clocks: tuple[float, ...]
) -> None:
    """Each that reported is known at the start and to lag, and a report of one forgets no other."""
    names = [f"g{number}" for number in range(len(clocks))]
    ahead = zip(names, clocks, strict=True)
    await send(kafka, loop, *(made(loop, name, epoch=4, ahead_s=ahead_s) for name, ahead_s in ahead))
    async with KafkaGateways(kafka, loop) as gateways:
        assert sorted(each.instance for each in gateways.reports()) == names
        await send(kafka, loop, made(loop, "g1", epoch=5, ahead_s=clocks[1]))
        await are_read(gateways, g1=5)
        assert sorted(lagging(gateways.reports(), 5, time.monotonic())) == ["g0", "g2"]


class Stumbling(KafkaGateways):
    """Notes what is known after each report, and fails once, at that of a gateway of this name."""

    name = "stumble"

    def __init__(self, kafka: str, loop: str) -> None:
        super().__init__(kafka, loop)
        self.known: list[dict[str, tuple[int, int, float]]] = []
        self.has_failed = False

    def _take(self, key: str, event: Event | None) -> None:
        if key == self.name and not self.has_failed:
            self.has_failed = True
            raise ValueError("of one report, once")
        super()._take(key, event)
        self.known.append({
            each.instance: (each.epoch, each.counts["v1"].requests, each.time) for each in self.reports()
        })  # fmt: skip


async def test_reports_that_are_read_again_are_not_taken_again(kafka: str, loop: str, topics: None) -> None:
    """Where reading begins again further back, no gateway goes back in epoch or counts, nor holds for a lease more."""
    counts = {1: 10, 2: 20, 3: 30}
    async with Stumbling(kafka, loop) as gateways:
        reports = [made(loop, "g0", epoch=epoch, requests=count) for epoch, count in counts.items()]
        await send(kafka, loop, made(loop, "g1", epoch=1, ahead_s=400.0), *reports)
        await are_read(gateways, g0=3, g1=1)
        before = gateways.known[-1]
        await send(kafka, loop, made(loop, gateways.name, epoch=3))
        await are_read(gateways, **{gateways.name: 3})
        assert gateways.has_failed
        again = gateways.known[gateways.known.index(before) :]
        assert [{name: each[name] for name in before} for each in again] == [before] * len(again)
        await send(kafka, loop, made(loop, "g0", epoch=4, requests=40))
        await are_read(gateways, g0=4)


async def test_a_duplicate_of_a_report_is_not_taken_again(kafka: str, loop: str, topics: None) -> None:
    """What a producer sends again, since it knew not that Kafka had it, brings back neither epoch, counts nor lease."""
    first, second = made(loop, "g0", epoch=1, requests=10), made(loop, "g0", epoch=2, requests=20)
    async with Stumbling(kafka, loop) as gateways:
        await send(kafka, loop, first, second)
        await are_read(gateways, g0=2)
        before = gateways.known[-1]
        await send(kafka, loop, first, second, made(loop, "g1", epoch=2))
        await are_read(gateways, g1=2)
        assert [each["g0"] for each in gateways.known[gateways.known.index(before) :]] == [before["g0"]] * 4


async def test_a_clock_that_is_set_back_and_a_log_that_is_made_anew_silence_no_gateway(
    kafka: str, loop: str, topics: None
) -> None:
    """A report is new where it comes later in the log, or where the gateway's clock says so."""
    name = topic(loop, "models.gateway-reports")
    async with KafkaGateways(kafka, loop) as gateways:
        await send(kafka, loop, *(made(loop, "g0", epoch=1, ahead_s=300.0) for _ in range(5)))
        await are_read(gateways, g0=1)
        await send(kafka, loop, made(loop, "g0", epoch=2))
        await are_read(gateways, g0=2)
        admin = await started_admin(kafka)
        await admin.delete_topics([name])

        async def is_made_anew() -> bool:
            answer: Any = await admin.create_topics([NewTopic(name, 1, 1)])
            return not any(code for _, code, *_ in answer.topic_errors)

        await eventually(is_made_anew, timeout_s=30, message="the topic is made anew")
        await admin.close()
        await send(kafka, loop, made(loop, "g0", epoch=3))
        await are_read(gateways, g0=3)
