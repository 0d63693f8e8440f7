"""Alerts of the deployer on Kafka."""

from __future__ import annotations

from gyre.events.v1 import monitor_pb2 as monitor
from gyre_core.topics import topic
from gyre_runtime.kafka import Producer

from gyre_deployer.domain.alerts import Alert
from gyre_deployer.wire import timestamp


class KafkaAlerts:
    """See `Alerts`: the topic `alerts` of each loop."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def publish(self, alert: Alert) -> None:
        """See `Alerts`."""
        message = monitor.Alert(
            alert_id=alert.alert_id,
            loop=alert.loop,
            name=alert.name,
            severity=monitor.ALERT_SEVERITY_CRITICAL,
            message=alert.message,
            start_time=timestamp(alert.start_time),
            end_time=None if alert.end_time is None else timestamp(alert.end_time),
        )
        await self._producer.send(topic(alert.loop, "alerts"), message, key=alert.alert_id)
