"""Settings of the trainer."""

from gyre_runtime import ServiceSettings
from pydantic import Field


class TrainerSettings(ServiceSettings):
    """What the trainer reads from the environment."""

    service = "trainer"

    trainer_threads: int = Field(1, ge=1, le=256)
    """Threads that training may use."""
    trainer_archive_wait_s: float = Field(60.0, gt=0)
    """Seconds to wait until the warehouse holds what Kafka held at the trigger."""
    trainer_mlflow_wait_s: float = Field(10.0, gt=0)
    """Seconds to wait for MLflow before a run goes on without its record there."""
