"""Attempts to load a version on the model server: whose fault it is that one failed, and when the next one may begin.

An attempt is written down before the server is asked and outlives this process. It counts against the version only
where the server itself refused it, gave it no answer in time while it answered everything else, or ended meanwhile.
That nobody answered, or that this process ended, says nothing of the version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

MAX_FAILURES = 3
"""Attempts that count against a version, after which it is unloadable."""
MAX_BACKOFF_S = 60.0
"""The longest pause between two attempts, seconds."""
MAX_MARKS = 1000
"""How many versions of a loop that ended the model server are remembered beside those in use; the oldest go."""
FORGOTTEN_AFTER_S = 3600.0
"""Age of the last attempt from which on failures count no more, seconds."""


class ModelState(StrEnum):
    """What the model server says of a model that lies in its repository."""

    READY = "READY"
    LOADING = "LOADING"
    UNAVAILABLE = "UNAVAILABLE"
    """It was refused or unloaded since the server started."""
    UNASKED = "UNASKED"
    """Nobody asked for it since the server started."""


class CallEnd(StrEnum):
    """How the call of an attempt ended without an answer, as this process saw it."""

    UNSEEN = "unseen"
    """The process that made it ended before."""
    BROKEN = "broken"
    TIMED_OUT = "timed out"
    """The server answered other questions right afterwards."""


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """The attempts to load one version since it was last loaded successfully.

    Attributes:
        start_time: when the last one began, unix seconds.
        ready_before: names of the models that the server could answer with when the last one began.
        refusals: how many the server refused or did not finish in time.
        losses: during how many the server ended, without it being certain that the version was the cause.
        is_open: whether it is not known yet how the last one ended.
        problem: why the last one failed, in words for a person; empty while it is open.
        ended_server: whether the version made the server end, so that it must not be loaded where others are served.
            That is remembered when the version is taken off the server, since it may be offered again.
    """

    start_time: float
    ready_before: tuple[str, ...] = ()
    refusals: int = 0
    losses: int = 0
    is_open: bool = True
    problem: str = ""
    ended_server: bool = False

    @property
    def failures(self) -> int:
        """How many attempts count against the version."""
        return self.refusals + self.losses

    @property
    def is_hopeless(self) -> bool:
        """Whether the version counts as unloadable."""
        return not self.is_open and (self.ended_server or self.failures >= MAX_FAILURES)

    def pause_s(self, first_backoff_s: float) -> float:
        """Seconds from the last attempt to the next: they double with each failure, up to `MAX_BACKOFF_S`."""
        return float(min(first_backoff_s * 2.0 ** min(max(self.failures - 1, 0), 20), MAX_BACKOFF_S))

    def refused(self, problem: str) -> LoadRecord:
        """The record after the server refused the version."""
        return replace(self, is_open=False, refusals=self.refusals + 1, problem=problem)

    def lost(self, *, is_certain: bool) -> LoadRecord:
        """The record after the server ended during the attempt.

        Args:
            is_certain: whether nothing but the attempt can have been the cause. It is held against the version at once
                only if the server had something to lose.
        """
        losses = self.losses + 1
        ended = losses >= MAX_FAILURES or (is_certain and bool(self.ready_before))
        problem = "the model server ended while it was loading"
        return replace(self, is_open=False, losses=losses, ended_server=self.ended_server or ended, problem=problem)

    def interrupted(self) -> LoadRecord:
        """The record after an attempt that says nothing of the version."""
        return replace(self, is_open=False, problem="the load was interrupted")

    def succeeded(self) -> LoadRecord | None:
        """The record after the version was loaded: the server may still end at its first requests."""
        return replace(self, is_open=False, refusals=0) if self.losses else None

    def acquitted(self) -> LoadRecord:
        """The record after the server ended during an attempt to load another version: it ends anyway."""
        return self if self.ended_server else replace(self, losses=0)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of an attempt without an answer, once the server answers again.

    Attributes:
        models: what the server says of the models in its repository.
        call: how its call ended.
        is_only_suspect: whether no other load was open, and no other candidate had traffic.
        timeout_s: the time that an attempt may take, seconds.
        is_overdue: whether that time is over.
    """

    models: Mapping[str, ModelState]
    call: CallEnd
    is_only_suspect: bool
    timeout_s: float
    is_overdue: bool


def next_attempt(
    record: LoadRecord | None, *, now: float, age_s: float, models: Mapping[str, ModelState]
) -> LoadRecord:
    """The record of a further attempt, which begins now.

    Args:
        record: the attempts before; None for none.
        now: unix seconds.
        age_s: seconds since the last of them began.
        models: what the server says of the models in its repository.
    """
    ready = tuple(sorted(name for name, state in models.items() if state == ModelState.READY))
    if record is None or (age_s > FORGOTTEN_AFTER_S and not record.ended_server):
        return LoadRecord(now, ready)
    return replace(record, start_time=now, ready_before=ready, is_open=True, problem="")


def concluded(record: LoadRecord, model: str, evidence: Evidence) -> LoadRecord | None:
    """The record of an attempt that had no answer: as it was while the server still loads, None for a success.

    Args:
        record: with an open attempt.
        model: name of the model on the server.
        evidence: what is known of the attempt.
    """
    own = evidence.models.get(model)
    is_timed_out = evidence.call == CallEnd.TIMED_OUT
    if _has_ended(record, own, evidence):
        return record.lost(is_certain=evidence.is_only_suspect and evidence.call != CallEnd.UNSEEN)
    if own == ModelState.READY and not (is_timed_out and model in record.ready_before):
        return record.succeeded()
    if own != ModelState.UNASKED and (is_timed_out or (own == ModelState.LOADING and evidence.is_overdue)):
        return record.refused(f"not answered within {evidence.timeout_s:g} s by a model server that answers otherwise")
    return record if own == ModelState.LOADING else record.interrupted()


def _has_ended(record: LoadRecord, own: ModelState | None, evidence: Evidence) -> bool:
    """Whether the server ended: it has forgotten what it held, or, where it held nothing, what it was seen to load."""
    if record.ready_before:
        return any(evidence.models.get(each) == ModelState.UNASKED for each in record.ready_before)
    return evidence.call != CallEnd.UNSEEN and own == ModelState.UNASKED
