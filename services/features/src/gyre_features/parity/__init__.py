"""Parity: what was served is what the algebra gives on the events that the store held at that moment."""

from gyre_features.parity.checking import Mismatch, ParityReport, Served, check
from gyre_features.parity.replaying import AppliedBatch, BatchReplay, EntityWrite

__all__ = ["AppliedBatch", "BatchReplay", "EntityWrite", "Mismatch", "ParityReport", "Served", "check"]
