"""The gRPC servicers of the read side."""

from gyre_features.parity.servicer import ParityServicer
from gyre_features.quality.servicer import DataQualityServicer
from gyre_features.serving.servicer import FeaturesServicer

__all__ = ["DataQualityServicer", "FeaturesServicer", "ParityServicer"]
