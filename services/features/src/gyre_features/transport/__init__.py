"""The gRPC servicers of the read side."""

from gyre_features.parity.servicer import ParityServicer
from gyre_features.serving.servicer import FeaturesServicer
from gyre_features.transport.quality import DataQualityServicer

__all__ = ["DataQualityServicer", "FeaturesServicer", "ParityServicer"]
