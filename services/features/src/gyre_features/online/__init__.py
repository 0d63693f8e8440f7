"""The online store: packed features in Redis, written by fenced batches, read in one round trip."""

from gyre_features.online.store import Applied, Behind, Fences, Known, OnlineStore

__all__ = ["Applied", "Behind", "Fences", "Known", "OnlineStore"]
