"""Settings of the trainer, beyond those that every process has."""

from gyre_runtime import ServiceSettings
from gyre_runtime.settings import (
    ArtifactSettings,
    KafkaSettings,
    MlflowSettings,
    StateSettings,
    TelemetrySettings,
    WarehouseSettings,
)
from pydantic import Field


class JobSettings(TelemetrySettings, WarehouseSettings, ArtifactSettings, MlflowSettings):
    """What the separate process of a training run reads from the environment."""

    service = "trainer"

    trainer_threads: int = Field(1, ge=1, le=256)
    """Threads that a training run may use."""
    trainer_niceness: int = Field(10, ge=0, le=19)
    """How far a training run stands back for others on the processor, as `nice` counts it."""
    trainer_mlflow_wait_s: float = Field(10.0, gt=0)
    """Seconds to wait for MLflow before a run goes on without its record there."""


class TrainerSettings(ServiceSettings, KafkaSettings, StateSettings, JobSettings):
    """What the trainer reads from the environment."""

    service = "trainer"

    trainer_join_bytes: int = Field(1024 * 1024 * 1024, ge=128 * 1024 * 1024)
    """Memory that `python -m gyre_trainer join` keeps the join within, bytes; Python takes some more."""
    trainer_maintain_every_s: float = Field(86_400.0, ge=0)
    """Seconds between two removals of old models; 0 leaves them to the job `maintain`."""
    trainer_archive_wait_s: float = Field(60.0, gt=0)
    """Seconds to wait until the warehouse holds what Kafka held at the trigger."""
