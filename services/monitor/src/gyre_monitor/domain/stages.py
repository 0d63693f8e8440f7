"""The stages of a loop in words: what each part is doing."""

from __future__ import annotations

from dataclasses import dataclass

STAGES = ("events", "features", "training", "rollout", "serving", "outcomes")
ACTIVE_S = 30.0
"""How long after its newest event a stage still counts as active."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What one part of the loop is doing; `update_time` is unix seconds, 0 before the first event."""

    stage: str
    state: str = "idle"
    subject: str = ""
    update_time: float = 0.0
    count: int = 0


def flowing(name: str, *, now: float, update_time: float) -> str:
    """The state of a stage that events flow through."""
    words = {"events": "receiving", "features": "applying", "serving": "answering", "outcomes": "crediting"}
    return words[name] if now - update_time <= ACTIVE_S else "idle"


def training(*, version: str, closed: bool, run_state: str) -> str:
    """The state of training after its newest trigger: what the trainer says of the run, until a candidate is there."""
    if version:
        return "registered"
    return run_state or ("given up" if closed else "triggered")


def rollout(kind: str, share: float) -> str:
    """The state of a rollout after its last event, named without its prefix in lower case."""
    if kind in {"shifted", "resumed"}:
        return f"canary {share * 100:g} %"
    return kind.replace("_", " ")
