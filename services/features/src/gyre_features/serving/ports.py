"""What the read side needs of others: forgetting a user, which another room does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gyre.events.v1 import privacy_pb2 as privacy

from gyre_features.online.store import OnlineStore


class ErasureOutcome(Protocol):
    """What was done to forget a user."""

    @property
    def message(self) -> privacy.UserForgotten:
        """The tombstone."""

    @property
    def deleted_keys(self) -> int:
        """Keys deleted in the online store."""

    @property
    def found_keys(self) -> int:
        """Keys that a search of the online store found afterwards."""

    @property
    def erased(self) -> privacy.UserErased | None:
        """What the archive erased in the warehouse; None while it has not said so."""


class Forgets(Protocol):
    """Forgets users online and in the warehouse."""

    async def forget(self, stores: Sequence[OnlineStore], user_id: str, *, sent_as: str) -> ErasureOutcome:
        """Forget a user in all stores of a loop; raises Unavailable where it must be asked again."""
