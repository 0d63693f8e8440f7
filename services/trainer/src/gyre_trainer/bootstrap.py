"""Builds the service on a lifespan: Kafka, the runs, the runner, the gRPC server."""

from __future__ import annotations

from dataclasses import dataclass

from gyre.trainer.v1.trainer_pb2_grpc import add_TrainerServiceServicer_to_server
from gyre_runtime import Dependency, Lifespan, Registration, Server, build_server, load_loops
from gyre_runtime.kafka import Producer, ensure_topics

from gyre_trainer import artifact
from gyre_trainer.adapters.kafka import KafkaAnnouncer, LiveModels, MeshLayouts
from gyre_trainer.adapters.process import JobProcess
from gyre_trainer.adapters.store import SqliteRuns
from gyre_trainer.adapters.warehouse import ArchivedWarehouse
from gyre_trainer.domain import Run
from gyre_trainer.handlers import RunRegistry
from gyre_trainer.maintain import maintain_forever
from gyre_trainer.runner import Runner
from gyre_trainer.settings import TrainerSettings
from gyre_trainer.transport.erasures import EraseRun, ErasureConsumer
from gyre_trainer.transport.servicer import TrainerServicer
from gyre_trainer.transport.triggers import TriggerConsumer, trigger_consumer


@dataclass(frozen=True, slots=True)
class RunningTrainer:
    """What tests and programs that embed the service may look at."""

    server: Server
    runs: RunRegistry


async def bootstrap(lifespan: Lifespan, settings: TrainerSettings) -> RunningTrainer:
    """Wire the service; it tells of its runs at once, and goes on with those that are due once Kafka is there."""
    loops = load_loops(settings)
    runs = RunRegistry(await lifespan.enter(SqliteRuns(settings.state_dir)), loops)
    producer = await lifespan.enter(Producer(settings.kafka, source="gyre/trainer"))
    lifespan.depends_on(Dependency("kafka", producer.ping, required=False))
    announcer = KafkaAnnouncer(producer)
    runner = Runner(
        runs,
        loops,
        ArchivedWarehouse(settings, loops),
        MeshLayouts(settings.kafka),
        JobProcess(settings),
        await lifespan.enter(LiveModels(settings.kafka, loops, settings.artifacts.absolute())),
        announcer,
    )
    erasures = ErasureConsumer(runs, _erasing(settings))
    lifespan.background("erasures", erasures.follow(settings.kafka, loops))
    if settings.trainer_maintain_every_s:
        lifespan.background("old models", maintain_forever(settings, loops, settings.trainer_maintain_every_s))
    registration = Registration(add_TrainerServiceServicer_to_server, TrainerServicer(runs, announcer))
    server = await lifespan.serve(build_server(settings, [registration], health=lifespan.health))

    async def follow() -> None:
        await ensure_topics(settings, loops.values())
        lifespan.background("runner", runner.run_forever())
        consumer = await lifespan.enter(trigger_consumer(settings.kafka, loops))
        lifespan.background("triggers", consumer.run_each(TriggerConsumer(runs).handle), stop=consumer.stop)

    lifespan.set_up("training", follow(), required=False)
    return RunningTrainer(server, runs)


def _erasing(settings: TrainerSettings) -> EraseRun:
    """What erases; MLflow takes seconds to import, which only a trainer with something to erase pays."""

    def erased(run: Run, tags: dict[str, str]) -> bool:
        from gyre_trainer.adapters import mlflow

        artifact.erase(settings.artifacts.absolute() / run.loop / run.version)
        return mlflow.erase(settings.mlflow, run.loop, run.run_id, tags, wait_s=settings.trainer_mlflow_wait_s)

    return erased
