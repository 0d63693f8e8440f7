"""Parity: what was served is what the algebra gives on the events that the store held at that moment."""

from gyre_features.parity.checking import Mismatch, ParityReport, Served, check
from gyre_features.parity.replaying import AppliedBatch, BatchReplay, ValueKey

__all__ = ["AppliedBatch", "BatchReplay", "Mismatch", "ParityReport", "Served", "ValueKey", "check"]
