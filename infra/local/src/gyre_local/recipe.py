"""What a component is to whoever runs it: a command with its environment, and a probe that says when it is usable."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Probe = Callable[[], None]
"""Returns when the process is usable, raises `NotReady` with the reason otherwise; takes at most a few seconds."""


@dataclass(frozen=True)
class Recipe:
    """One process, prepared: its files are written and it can be started at once.

    Attributes:
        name: the process, as in ports.toml.
        command: absolute program and arguments.
        directory: the working directory.
        probe: the readiness check.
        env: variables added to those of `gyre_local.process.inherited`.
        ports: what it will listen on, by meaning.
        start_timeout_s: how long it may take until the probe passes.
        stop_timeout_s: how long it may take to end after SIGTERM.
    """

    name: str
    command: tuple[str, ...]
    directory: Path
    probe: Probe
    env: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    start_timeout_s: float = 90.0
    stop_timeout_s: float = 15.0
