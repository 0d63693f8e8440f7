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
    """A model version with its share of the users, under a rollout epoch."""

    version: str
    share: float
    epoch: int = 0


def bucket(user_id: str, salt: str) -> float:
    """Where a user stands in [0, 1): uniform over users, the same for ever, independent between salts."""
    return _unit("bucket", salt, user_id)


def assign(arms: Sequence[Arm], position: float) -> tuple[Arm, float]:
    """The arm of a bucket position, and the probability of that arm.

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
    """Whether a request is answered in random order; independent of the user's bucket."""
    return _unit("explore", salt, request_id) < share


def exploration_order(request_id: str, n: int, salt: str) -> list[int]:
    """A uniformly random order of n candidates that the request id alone decides, so that it can be checked later."""
    order = list(range(n))
    Random(_digest("order", salt, request_id)).shuffle(order)  # noqa: S311 (no secret: it must be reproducible)
    return order


def _unit(purpose: str, salt: str, id_: str) -> float:
    return (_digest(purpose, salt, id_) >> 11) * _RESOLUTION


def _digest(purpose: str, salt: str, id_: str) -> int:
    # Lengths keep ("a", "bc") and ("ab", "c") apart.
    text = f"{purpose}\x1f{len(salt)}\x1f{salt}\x1f{id_}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
