"""Plain lines that say what a long command is doing, where no progress bar moves."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from threading import Event, Thread
from types import TracebackType
from typing import IO, Self

INTERVAL_S = 10.0
"""A long command prints at least one line in this time, seconds."""


class Heartbeat:
    """A context manager that prints what a command is doing, every `interval_s` seconds, from a thread of its own.

    Args:
        describe: the lines to print, without newline; called in the thread, and must not raise.
        out: where they go; standard output by default.
        interval_s: seconds between two prints, `INTERVAL_S` by default.
        has_bar: whether a progress bar moves in a terminal, into which nothing is printed then.
    """

    def __init__(
        self,
        describe: Callable[[], Sequence[str]],
        *,
        out: IO[str] | None = None,
        interval_s: float | None = None,
        has_bar: bool = True,
    ) -> None:
        self._describe, self._interval_s = describe, INTERVAL_S if interval_s is None else interval_s
        self._out, self._has_bar = out or sys.stdout, has_bar
        self._ended = Event()
        self._started = time.monotonic()
        self._thread: Thread | None = None

    def __enter__(self) -> Self:
        """Start to print."""
        if not (self._has_bar and self._out.isatty()):
            self._thread = Thread(target=self._print, name="heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop printing."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _print(self) -> None:
        while not self._ended.wait(self._interval_s):
            for line in self._describe():
                self._out.write(f"  [{time.monotonic() - self._started:4.0f} s] {line}\n")
            self._out.flush()
