"""Who gets which model: stable hashing of users into buckets, of buckets into arms, and of requests into exploration.

Hash-based assignment after Kohavi, Tang and Xu, Trustworthy Online Controlled Experiments (2020), chapter 4: stateless,
the same everywhere, and independent between salts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

_RESOLUTION = 2.0**-53


@dataclass(frozen=True, slots=True)
class Arm:
    """A model version with its share of the users, 0 to 1; `epoch` counts rollouts and plays no part in assignment."""

    version: str
    share: float
    epoch: int = 0


def bucket(user_id: str, salt: str) -> float:
    """A user's position in [0, 1), for `assign`: uniform over users, the same for ever, independent between salts."""
    return _unit("bucket", salt, user_id)


def assign(arms: Sequence[Arm], position: float) -> tuple[Arm, float]:
    """The arm of a position in [0, 1) that `bucket` gave, and the probability of that arm, which is its share.

    Arms share [0, 1) in their order, so with two arms whoever has the growing one keeps it. Raises ValueError where
    there are no arms, a share is negative, or they do not sum to 1.
    """
    total = sum(arm.share for arm in arms)
    if not arms or abs(total - 1.0) > 1e-9 or min(arm.share for arm in arms) < 0:
        raise ValueError(f"arms {list(arms)}: shares must be at least 0 and sum to 1")
    through = 0.0
    chosen = None
    for arm in arms:
        if arm.share <= 0:
            continue
        chosen = arm
        through += arm.share
        if position < through:
            break
    if chosen is None:
        raise ValueError(f"arms {list(arms)}: no share is positive")
    return chosen, chosen.share


def explores(request_id: str, share: float, salt: str) -> bool:
    """Whether a request is answered in random order: so are a `share` (0 to 1) of requests, whatever the user's bucket.

    A request id always has the same answer under one salt and share.
    """
    return _unit("explore", salt, request_id) < share


def exploration_order(request_id: str, n: int, salt: str) -> list[int]:
    """A uniformly random order of n candidates, as indices from 0; request id, n and salt alone decide it.

    So it can be computed again later, to check what was served.
    """
    order = list(range(n))
    Random(_digest("order", salt, request_id)).shuffle(order)  # noqa: S311 (no secret: it must be reproducible)
    return order


def _unit(purpose: str, salt: str, id_: str) -> float:
    return (_digest(purpose, salt, id_) >> 11) * _RESOLUTION


def _digest(purpose: str, salt: str, id_: str) -> int:
    # Lengths keep ("a", "bc") and ("ab", "c") apart.
    text = f"{purpose}\x1f{len(salt)}\x1f{salt}\x1f{id_}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
