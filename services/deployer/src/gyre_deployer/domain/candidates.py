"""The candidates of a topic whose rollout is not decided yet, and how much of the topic is."""

from __future__ import annotations

from gyre_deployer.domain.rollouts import Candidate, LoopState


class UndecidedCandidates:
    """The candidates that were read from the topic and are not decided in what the log holds, oldest first.

    What is decided is forgotten only by `prune`, so that a write which failed has lost nobody.

    Args:
        start: offset in the topic before which every candidate is decided.
    """

    def __init__(self, start: int) -> None:
        self._decided_offset = self._next_offset = start
        self._candidates: dict[str, tuple[int, Candidate]] = {}

    def take(self, offset: int, candidate: Candidate | None) -> bool:
        """Take in a record of the topic, None for one that is no candidate; whether it may not be decided yet.

        The topic may be read again from an earlier offset.
        """
        if offset < self._decided_offset:
            return False
        self._next_offset = max(self._next_offset, offset + 1)
        if candidate is not None:
            self._candidates.setdefault(candidate.version, (offset, candidate))
        return candidate is not None

    def all(self) -> list[Candidate]:
        """Every one of them, oldest first, each version once."""
        return [candidate for _, candidate in self._candidates.values()]

    def decided_offset(self, state: LoopState) -> int:
        """The offset in the topic before which every candidate is decided in a state."""
        undecided = self._undecided(state)
        return min((offset for offset, _ in undecided.values()), default=self._next_offset)

    def prune(self, state: LoopState) -> None:
        """Forget those that are decided in a state which the log holds."""
        self._candidates = self._undecided(state)
        self._decided_offset = max(self._decided_offset, self.decided_offset(state))

    def _undecided(self, state: LoopState) -> dict[str, tuple[int, Candidate]]:
        known = {rollout.version for rollout in state.rollouts.values()}
        return {
            version: (offset, each)
            for version, (offset, each) in self._candidates.items()
            if version not in known and offset >= state.candidates_offset
        }
