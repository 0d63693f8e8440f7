"""Jobs that SIGKILL ends at one of their steps: what the next run finds is what a crash at that step leaves behind."""

import inspect
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any

from gyre_local.timeouts import scaled

_PRELOADED = ("gyre_features.processes.maintain", "gyre_deployer.maintain", "gyre_monitor.maintain")
"""Imported once for all jobs, since that takes longer than a job does."""
_END_S = 120.0
KILLED = -signal.SIGKILL


@dataclass(frozen=True, slots=True)
class KillableJob:
    """A command that each run starts as a process of its own.

    Attributes:
        main: what it runs, as `module:function`.
        argv: its words, the program's name first.
        env: the variables that it reads, beside those of the test.
        steps: what it does outside of its memory, as `module:function` or `module:Class.method`; each call is two
            steps, one before and one after it.
    """

    main: str
    argv: Sequence[str]
    env: Mapping[str, str]
    steps: Sequence[str]

    def run(self, *, kill_at: int = 0) -> int:
        """Run it to its end, or until SIGKILL at a step, counted from 1; 0, or more than it takes, kills nothing.

        Returns:
            The exit code; `KILLED` where it was killed.

        Raises:
            TimeoutError: it did not end in time, and was killed.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(_PRELOADED))
        process = context.Process(target=_run, args=(self, kill_at))
        process.start()
        process.join(scaled(_END_S))
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{' '.join(self.argv)} did not end within {scaled(_END_S):.3g} s")
        return process.exitcode


class _Steps:
    """Counts steps, and kills this process at one."""

    def __init__(self, kill_at: int) -> None:
        self._left = kill_at

    def take(self) -> None:
        """Take a step."""
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call with a step before and one after it."""

        @wraps(call)
        async def awaited(*args: Any, **options: Any) -> Any:
            self.take()
            result = await call(*args, **options)
            self.take()
            return result

        @wraps(call)
        def called(*args: Any, **options: Any) -> Any:
            self.take()
            result = call(*args, **options)
            self.take()
            return result

        return awaited if inspect.iscoroutinefunction(call) else called


def _run(job: KillableJob, kill_at: int) -> None:
    os.environ.update(job.env)
    sys.argv = list(job.argv)
    steps = _Steps(kill_at)
    for name in job.steps:
        owner, attribute = _found(name)
        setattr(owner, attribute, steps.around(getattr(owner, attribute)))
    module, function = _found(job.main)
    getattr(module, function)()


def _found(name: str) -> tuple[Any, str]:
    """What holds a name, and its last part."""
    module, _, path = name.partition(":")
    *parts, last = path.split(".")
    owner = import_module(module)
    for part in parts:
        owner = getattr(owner, part)
    return owner, last
