"""A figure of the data-quality benchmark, and the clock that takes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    system: str
    case: str
    metric: str
    value: float
    unit: str


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work gives, and how long it took, seconds."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started
