"""Runs a recipe as a child process: start, wait for the probe, stop. The tests and the installation use it."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from gyre_local.failures import LocalStackError, NotReady
from gyre_local.recipe import Recipe
from gyre_local.timeouts import Deadline, scaled

POLL_S = 0.03
TAIL_LINES = 25


def tail(log: Path, *, lines: int = TAIL_LINES) -> str:
    """The last lines of a log file as one text without a newline at its end; a note where it is empty or missing."""
    if not log.exists():
        return "(no log)"
    with log.open(errors="replace") as file:
        return "".join(deque(file, lines)).rstrip() or "(the log is empty)"


def guarded(command: Sequence[str]) -> tuple[str, ...]:
    """The command, ended by the kernel should the process that started it be killed (setpriv of util-linux).

    Without setpriv on PATH the command as it is.
    """
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "TERM", "--", *command) if setpriv else tuple(command)


def inherited() -> dict[str, str]:
    """The variables that every process of a stack starts with: this process's, but for the command line's token."""
    return {name: value for name, value in os.environ.items() if name != "GYRE_TOKEN"}


class Process:
    """A recipe as a child process, from `start` or `launch` on; it ends with this process even when that is killed."""

    def __init__(self, recipe: Recipe, *, log: Path) -> None:
        self.recipe = recipe
        self.log = log
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; RuntimeError where it is not started."""
        return self.launched.pid

    @property
    def launched(self) -> "subprocess.Popen[bytes]":
        """The child process; RuntimeError where it is not started."""
        if self._popen is None:
            raise RuntimeError(f"{self.recipe.name} is not started")
        return self._popen

    def start(self) -> None:
        """Start the process and return once its probe passes; where that fails, or is interrupted, it is stopped.

        Raises:
            LocalStackError: it ended, or was not ready in time; with the end of its log.
        """
        child = self.launch()
        try:
            self._await_ready(child)
        except BaseException:  # raised again: interrupted by the keyboard, too, no process stays behind
            self.stop()
            raise

    def launch(self) -> "subprocess.Popen[bytes]":
        """Start the process and return at once, without its probe; output is appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._popen = child = subprocess.Popen(
                guarded(self.recipe.command),
                cwd=self.recipe.directory,
                env={**inherited(), **self.recipe.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return child

    def _await_ready(self, child: subprocess.Popen[bytes]) -> None:
        deadline = Deadline(self.recipe.start_timeout_s)
        while True:
            if child.poll() is not None:
                raise LocalStackError(
                    f"{self.recipe.name} ended with code {child.returncode} at start. Its log {self.log} ends with:\n"
                    + tail(self.log)
                )
            try:
                self.recipe.probe()
            except NotReady as reason:
                if deadline.passed:
                    raise LocalStackError(
                        f"{self.recipe.name} was not ready after {deadline.limit_s:.3g} s ({reason}). "
                        f"Its log {self.log} ends with:\n{tail(self.log)}"
                    ) from reason
                time.sleep(POLL_S)
            else:
                return

    def stop(self) -> None:
        """End the process and its children: SIGTERM, and SIGKILL for what is left after the recipe's time.

        Returns once it has ended; does nothing where it is not started.
        """
        child = self._popen
        if child is None:
            return
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(scaled(self.recipe.stop_timeout_s))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        self._popen = None


@contextlib.contextmanager
def running(recipe: Recipe, *, log: Path) -> Iterator[Process]:
    """Run `recipe` for the length of the block, which begins once its probe passes; raises as `Process.start`."""
    process = Process(recipe, log=log)
    process.start()
    try:
        yield process
    finally:
        process.stop()
