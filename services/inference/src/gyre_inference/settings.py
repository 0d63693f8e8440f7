"""Settings of the inference service, beyond those that every process has."""

from gyre_runtime import ServiceSettings
from gyre_runtime.settings import KafkaSettings, TritonSettings
from pydantic import Field


class InferenceSettings(ServiceSettings, KafkaSettings, TritonSettings):
    """What the inference service reads from the environment."""

    service = "inference"

    inference_triton_timeout_s: float = Field(2.0, gt=0, le=60)
    """The longest wait for Triton, where the caller leaves more time than that."""
