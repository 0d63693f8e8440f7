"""Kafka and the trainer, behind the ports."""

from __future__ import annotations

from collections.abc import Sequence

from gyre.events.v1 import models_pb2 as models
from gyre.trainer.v1 import trainer_pb2 as pb
from gyre.trainer.v1 import trainer_pb2_grpc as rpc
from gyre_core.topics import topic
from gyre_runtime import Channel, call, instrument, model_tracer
from gyre_runtime.kafka import Producer

from gyre_monitor.ports import RunOfTrigger, TriggerToSend

_TIMEOUT_S = 2.0
_RUNS = 20
_STATE_PREFIX = "RUN_STATE_"
_FAILED = frozenset({pb.RUN_STATE_REFUSED, pb.RUN_STATE_FAILED})


class KafkaTriggers:
    """Sends triggers to `training.triggers`, each in a span of the model flow that links to what tipped it."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def send(self, trigger: TriggerToSend) -> None:
        """See `TriggerPublisher`."""
        reason = models.TriggerReason.ValueType(trigger.reason)
        message = models.TrainingTrigger(
            trigger_id=trigger.trigger_id,
            loop=trigger.loop,
            reason=reason,
            value=trigger.value,
            threshold=trigger.threshold,
        )
        word = models.TriggerReason.Name(reason).removeprefix("TRIGGER_REASON_").lower()
        attributes = {"gyre.loop": trigger.loop, "gyre.trigger_id": trigger.trigger_id, "gyre.reason": word}
        with model_tracer().span("training trigger", links=trigger.links, attributes=attributes):
            await self._producer.send(
                topic(trigger.loop, "training.triggers"),
                message,
                key=trigger.loop,
                time=trigger.trigger_time,
                id=trigger.trigger_id,
            )
        instrument("gyre_monitor_triggers_total").add(loop=trigger.loop, reason=word)


class TrainerRuns:
    """Asks the trainer for its runs."""

    def __init__(self, channel: Channel) -> None:
        self._stub = rpc.TrainerServiceStub(channel)

    async def of_loop(self, loop: str) -> Sequence[RunOfTrigger]:
        """See `TrainingRuns`."""
        request = pb.ListRunsRequest(loop=loop, limit=_RUNS)
        answer = await call(self._stub.ListRuns, request, timeout_s=_TIMEOUT_S, attempts=1)
        return [
            RunOfTrigger(
                run.trigger_id,
                run.run_id,
                pb.RunState.Name(run.state).removeprefix(_STATE_PREFIX).lower(),
                failed=run.state in _FAILED,
            )
            for run in answer.runs
        ]
