"""Attempts to load a version on the model server: how many, how far apart, and what it means if the server ended.

An attempt is written down before it begins and outlives this process, so that a version that ends the server, or the
deployer with it, is not loaded again and again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

MAX_ATTEMPTS = 3
"""Failed attempts in a row after which a version counts as unloadable."""
MAX_BACKOFF_S = 60.0
"""The longest pause between two attempts, seconds."""
FORGOTTEN_AFTER_S = 3600.0
"""Age of the last failed attempt from which on it counts no more, seconds."""


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """The attempts to load one version since it was last loaded successfully.

    Attributes:
        attempts: how many began and did not succeed.
        start_time: when the last one began, unix seconds.
        ready_before: names of the models that the server could answer with when the last one began.
        is_open: whether it is not known yet how the last one ended.
        problem: why the last one failed, in words for a person; empty while it is open.
        ended_server: whether the server ended during one of them and lost other models by it.
    """

    attempts: int
    start_time: float
    ready_before: tuple[str, ...] = ()
    is_open: bool = True
    problem: str = ""
    ended_server: bool = False

    @property
    def is_hopeless(self) -> bool:
        """Whether the version counts as unloadable."""
        return not self.is_open and (self.ended_server or self.attempts >= MAX_ATTEMPTS)

    def retry_time(self, first_backoff_s: float) -> float:
        """When the next attempt may begin, unix seconds: pauses double up to `MAX_BACKOFF_S`."""
        pause_s: float = min(first_backoff_s * 2.0 ** min(self.attempts - 1, 20), MAX_BACKOFF_S)
        return self.start_time + pause_s

    def failed(self, problem: str) -> LoadRecord:
        """The record after the open attempt failed."""
        return replace(self, is_open=False, problem=problem)


def next_attempt(record: LoadRecord | None, *, now: float, ready: Collection[str]) -> LoadRecord:
    """The record of a further attempt, which begins now.

    Args:
        record: the attempts before; None for none.
        now: unix seconds.
        ready: names of the models that the server can answer with.
    """
    if record is None or (now - record.start_time > FORGOTTEN_AFTER_S and not record.ended_server):
        return LoadRecord(1, now, tuple(sorted(ready)))
    return LoadRecord(record.attempts + 1, now, tuple(sorted(ready)), ended_server=record.ended_server)


def closed(record: LoadRecord, *, own_prefix: str, name: str, ready: Collection[str]) -> LoadRecord:
    """The record of an attempt whose call broke off, once the server answers again.

    The server ended during the attempt if it lost what it held before: any other model of this loop, which nobody else
    unloads, or, where it held none, every model of the other loops. A server that held nothing had nobody to serve:
    then the attempt merely failed.

    Args:
        record: with an open attempt.
        own_prefix: what the names of this loop's models start with.
        name: of the model that was loaded.
        ready: names of the models that the server can answer with now.
    """
    before = set(record.ready_before) - {name}
    own = {each for each in before if each.startswith(own_prefix)}
    ended = bool(own - set(ready)) if own else bool(before) and not before & set(ready)
    if ended:
        return replace(record.failed("the model server ended while it was loading"), ended_server=True)
    return record.failed("the model server did not answer while it was loading")
