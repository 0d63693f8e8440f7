"""The job of one training run: `python -m gyre_trainer.job`, in a process of its own.

It reads its task from the first line of standard input and ends at once when that is closed, so it never outlives the
service. It says how far it is on standard output, one JSON object a line, and last how it ended.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TextIO

_LOG = logging.getLogger(__name__)
_ORPHANED = 3
_MAX_REASON_CHARS = 300


def _end_with_the_service() -> None:
    """Wait for the end of standard input, which the service holds as long as it lives and wants the job."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(_ORPHANED)


def _first_line() -> str:
    """Read the task without reading ahead."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(sys.stdin.fileno(), 1 << 20)
        if not part:
            os._exit(_ORPHANED)
        line += part
    return line.decode()


def _own_output() -> TextIO:
    """Keep standard output for what the job says: whatever a library prints goes to standard error."""
    kept = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return kept


def main() -> None:
    """Read the task, do it, and say how it ended."""
    output = _own_output()
    given = _first_line()
    threading.Thread(target=_end_with_the_service, name="service-watch", daemon=True).start()

    def say(**facts: Any) -> None:
        output.write(json.dumps(facts) + "\n")

    _do(given, say)
    output.flush()
    # A request to MLflow that nobody waits for any more must not hold the process.
    os._exit(0)


def _do(given: str, say: Callable[..., None]) -> None:
    """Do the task in JSON `given`; what it needs takes seconds to import, in which the service may end."""
    import pyarrow as pa
    from gyre_runtime import load_settings
    from gyre_runtime.errors import origin_of
    from gyre_runtime.telemetry import setup_logging

    from gyre_trainer.domain import Task, TrainingRefused
    from gyre_trainer.settings import JobSettings
    from gyre_trainer.work import execute

    settings = load_settings(JobSettings)
    setup_logging("trainer-job", settings.log_level)
    os.nice(settings.trainer_niceness)
    pa.set_cpu_count(settings.trainer_threads)
    task = Task(**json.loads(given))
    try:
        outcome = execute(task, settings, lambda state, progress: say(state=state, progress=progress))
    except TrainingRefused as refusal:
        say(outcome="refused", reason=str(refusal), quality=asdict(refusal.quality))
    except Exception as error:  # noqa: BLE001 - the outermost boundary: logged, and said to the service
        _LOG.exception("the job broke", extra={"run_id": task.run_id})
        reason = f"{type(error).__name__} at {origin_of(error)}: {error}"
        say(outcome="failed", reason=reason[:_MAX_REASON_CHARS])
    else:
        say(outcome="candidate", **outcome)


if __name__ == "__main__":
    main()
