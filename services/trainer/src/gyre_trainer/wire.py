"""Values of the domain as the messages that gRPC and Kafka carry."""

from __future__ import annotations

from collections.abc import Mapping

from gyre.events.v1 import models_pb2 as models


def measurements(values: Mapping[str, float]) -> list[models.Measurement]:
    """Measurements as messages carry them, by name."""
    return [models.Measurement(name=name, value=value) for name, value in sorted(values.items())]
