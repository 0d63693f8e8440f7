"""The heartbeat of a progress display: plain lines where its output is no terminal, in which it would stay silent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gyre_core.heartbeat import Heartbeat

if TYPE_CHECKING:
    from rich.progress import Progress, Task


def heartbeat_of(progress: Progress, *, interval_s: float | None = None) -> Heartbeat:
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
