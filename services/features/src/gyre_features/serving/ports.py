"""What the read side needs of others: forgetting a user, which another room does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gyre.events.v1 import privacy_pb2 as privacy

from gyre_features.online.store import OnlineStore


class ErasureOutcome(Protocol):
    """What was done to forget a user."""

    @property
    def forgotten_ns(self) -> int:
        """The tombstones' time, unix nanoseconds."""

    @property
    def deleted_keys(self) -> int:
        """Count of keys deleted in the online store."""

    @property
    def found_keys(self) -> int:
        """Count of keys and members of buffers of the user that a search of the online store found afterwards."""

    @property
    def erased(self) -> privacy.UserErased | None:
        """What the archive erased in the warehouse; None where it had not said so in time, and will still do it."""


class Forgets(Protocol):
    """Forgets users online and in the warehouse, for good; see `Forgetting`."""

    async def forget(self, stores: Sequence[OnlineStore], user_id: str) -> ErasureOutcome:
        """Forget a user, by the id as sent or its hash, in all stores of a loop; see `Forgetting.forget`.

        Raises:
            Precondition: there is no key file (PRIVACY_KEY_MISSING).
            Unavailable: Kafka or the online store do not answer; ask again.
        """
