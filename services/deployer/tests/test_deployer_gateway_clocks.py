"""Gateways whose clocks are wrong, as the deployer knows them: each is there as long as its reports come."""

import time

import pytest
from aiokafka import AIOKafkaProducer
from gyre.events.v1.models_pb2 import GatewayReport
from gyre_core.topics import topic
from gyre_deployer.adapters.views import KafkaGateways
from gyre_deployer.domain.observation import lagging
from gyre_local.testing import eventually
from gyre_runtime.events import encode

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(120)]
LEASE_S = 60.0


async def report(kafka: str, loop: str, instance: str, *, epoch: int, ahead_s: float) -> None:
    """Report as a gateway does whose clock, and so whose record's time, is wrong."""
    now = time.time() + ahead_s
    message = GatewayReport(loop=loop, instance=instance, epoch=epoch, lease_s=LEASE_S)
    message.report_time.FromMilliseconds(round(now * 1000))
    record = encode(message, source="tests", key=instance)
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        await producer.send_and_wait(
            topic(loop, "models.gateway-reports"),
            record.value,
            key=instance.encode(),
            headers=record.headers,
            timestamp_ms=round(now * 1000),
        )


@pytest.mark.parametrize("clocks", [(0.0, 180.0, -400.0), (-400.0, -300.0, -200.0)])
async def test_gateways_with_wrong_clocks_are_waited_for(
    kafka: str, loop: str, topics: None, clocks: tuple[float, ...]
) -> None:
    """Each that reported is known at the start and to lag, and a report of one forgets no other."""
    names = [f"g{number}" for number in range(len(clocks))]
    for name, ahead_s in zip(names, clocks, strict=True):
        await report(kafka, loop, name, epoch=4, ahead_s=ahead_s)
    async with KafkaGateways(kafka, loop) as gateways:
        assert sorted(each.instance for each in gateways.reports()) == names
        await report(kafka, loop, "g1", epoch=5, ahead_s=clocks[1])

        async def is_read() -> bool:
            return {each.instance: each.epoch for each in gateways.reports()}.get("g1") == 5

        await eventually(is_read, timeout_s=30, message="the report comes")
        assert sorted(lagging(gateways.reports(), 5, time.monotonic())) == ["g0", "g2"]
