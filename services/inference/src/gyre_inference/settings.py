"""Settings of the inference service."""

from gyre_runtime import ServiceSettings


class InferenceSettings(ServiceSettings):
    """What every process has; the service needs nothing of its own."""

    service = "inference"
