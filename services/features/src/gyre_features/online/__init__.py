"""The online store: packed features in Redis, written by fenced batches, read in one round trip."""

from gyre_features.online.script import AlreadyApplied, Applied, AppliedOffsets, OffsetMismatch, StaleInput, Write
from gyre_features.online.store import OnlineStore

__all__ = ["AlreadyApplied", "Applied", "AppliedOffsets", "OffsetMismatch", "OnlineStore", "StaleInput", "Write"]
