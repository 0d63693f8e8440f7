"""Plain progress lines for long commands whose output is no terminal, where a progress bar would stay silent."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from threading import Event, Thread
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, Task

INTERVAL_S = 10.0
"""A long command prints at least one line in this time, seconds."""


class Heartbeat:
    """A context manager that prints what a command is doing, every `interval_s` seconds, from a thread of its own.

    It prints nothing into a terminal, whose progress bar moves by itself.

    Args:
        describe: the lines to print, without newline; called in the thread, and must not raise.
        out: where they go; standard output by default.
        interval_s: seconds between two prints.
    """

    def __init__(
        self, describe: Callable[[], Sequence[str]], *, out: IO[str] | None = None, interval_s: float = INTERVAL_S
    ) -> None:
        self._describe, self._interval_s = describe, interval_s
        self._out = out or sys.stdout
        self._ended = Event()
        self._started = time.monotonic()
        self._thread: Thread | None = None

    def __enter__(self) -> Self:
        """Start to print."""
        if not self._out.isatty():
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


def heartbeat_of(progress: Progress, *, interval_s: float = INTERVAL_S) -> Heartbeat:
    """The heartbeat of a progress display: a line for each task under way, into the display's own output."""

    def describe() -> list[str]:
        running = [task for task in progress.tasks if not task.finished]
        return [_line(task) for task in running] or ["working"]

    # Rich redirects the standard streams while it displays; its own file is the one that was there before.
    return Heartbeat(describe, out=progress.console.file, interval_s=interval_s)


def _line(task: Task) -> str:
    if task.total is None:
        return f"{task.description}: under way"
    if task.total <= 1.0:
        return f"{task.description}: {task.completed:.0%}"
    return f"{task.description}: {task.completed:,.0f} of {task.total:,.0f}"
