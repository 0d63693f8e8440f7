"""What the trainer says on Kafka, and what it reads there about the models that serve."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from aiokafka.errors import KafkaError
from gyre.events.v1 import models_pb2 as models
from gyre.events.v1 import monitor_pb2 as monitor
from gyre_core.models import MANIFEST_FILE, MODEL_FILE
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_runtime import Unavailable
from gyre_runtime.events import message_types
from gyre_runtime.kafka import Producer, View
from gyre_runtime.layouts import refusal_of

from gyre_trainer.domain import QualityAlert, Run, TrainedCandidate, Trigger
from gyre_trainer.wire import measurements

_LIVE = "live"


class KafkaAnnouncer:
    """Sends triggers, candidates and alerts."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def trigger(self, trigger: Trigger) -> None:
        """See `Announcer`."""
        message = models.TrainingTrigger(
            trigger_id=trigger.trigger_id, loop=trigger.loop, reason=models.TRIGGER_REASON_MANUAL
        )
        name = topic(trigger.loop, "training.triggers")
        await self._producer.send(name, message, key=trigger.loop, id=trigger.trigger_id)

    async def candidate(self, run: Run, candidate: TrainedCandidate) -> None:
        """See `Announcer`."""
        message = models.CandidateRegistered(
            loop=run.loop,
            version=run.version,
            run_id=run.run_id,
            layout=candidate.layout,
            columns=candidate.columns,
            artifact_uri=str(candidate.folder),
            sha256=candidate.sha256,
            trigger_id=run.trigger_id,
            snapshots=run.pins.snapshots if run.pins else {},
            measurements=measurements(candidate.measurements),
        )
        await self._producer.send(topic(run.loop, "models.candidates"), message, key=run.loop, id=run.version)

    async def alert(self, alert: QualityAlert) -> None:
        """See `Announcer`."""
        outcome = alert.outcome
        blocks = outcome.action == "block"
        message = monitor.Alert(
            alert_id=alert.alert_id,
            loop=alert.loop,
            name=f"quality {outcome.name}",
            severity=monitor.ALERT_SEVERITY_CRITICAL if blocks else monitor.ALERT_SEVERITY_WARNING,
            message=outcome.message,
        )
        message.start_time.FromNanoseconds(round(alert.start_time * 1e9))
        if alert.end_time is not None:
            message.end_time.FromNanoseconds(round(alert.end_time * 1e9))
        await self._producer.send(topic(alert.loop, "alerts"), message, key=alert.alert_id)


class MeshLayouts:
    """See `MaintainedLayouts`: what the topics of the running mesh say."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap

    async def refusal(self, spec: LoopSpec) -> str:
        """See `MaintainedLayouts`."""
        try:
            refused = await refusal_of(self._bootstrap, spec)
        except (KafkaError, TimeoutError) as error:
            problem = f"the layouts of {spec.loop} cannot be read: {type(error).__name__}"
            raise Unavailable("KAFKA_UNAVAILABLE", problem) from error
        return "" if refused is None else f"{refused.reason}: {refused}"


class LiveModels:
    """The live model of each loop, from the rollout state; an async context manager."""

    def __init__(self, bootstrap: str, loops: Iterable[str], artifacts: Path) -> None:
        types = message_types(models.RolloutView)
        self._views = {loop: View(bootstrap, topic(loop, "models.rollouts"), types) for loop in loops}
        self._artifacts = artifacts

    async def __aenter__(self) -> Self:
        """Follow the rollout state of every loop."""
        for view in self._views.values():
            await view.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop following."""
        for view in self._views.values():
            await view.__aexit__(None, None, None)

    async def folder(self, loop: str) -> Path | None:
        """See `Incumbents`."""
        await self._views[loop].ready()
        event = self._views[loop].get(loop)
        versions = [arm.version for arm in event.message.arms if arm.name == _LIVE] if event else []
        folders = [self._artifacts / loop / version for version in versions if version]
        whole = (each for each in folders if (each / MODEL_FILE).exists() and (each / MANIFEST_FILE).exists())
        return next(whole, None)
