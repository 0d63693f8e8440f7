"""Runs the job in a process of its own, which ends when this one does.

The job's standard input is a pipe that this process holds: its first line is the task, and its end, even by SIGKILL of
this process, ends the job. The job's standard output is one JSON object a line: steps, and last the outcome.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO, Any

from gyre_runtime.settings import WarehouseSettings, variable_of

from gyre_trainer.domain import JobFailed, Quality, RunState, Task, TrainedCandidate, TrainingRefused
from gyre_trainer.ports import OnProgress
from gyre_trainer.settings import TrainerSettings

_SCRATCH = "job"
_LINE_BYTES = 16 * 1024 * 1024
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class JobProcess:
    """Starts `python -m gyre_trainer.job` for each task."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings
        threads = str(settings.trainer_threads)
        # Rows of users may be spilled there: a job that is killed must not leave them where nobody looks.
        self._scratch = settings.state_dir.absolute() / _SCRATCH
        warehouse = {variable_of(name): getattr(settings, name) for name in WarehouseSettings.model_fields}
        self._env = {
            **{name: value for name, value in os.environ.items() if name not in warehouse},
            # As they are: a folder is relative to the directory that the job begins in, too, and a name is no folder.
            **{name: str(value) for name, value in warehouse.items() if value},
            **dict.fromkeys(_THREAD_VARIABLES, threads),
            # The job has a time of its own for MLflow, and tries again by itself.
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GYRE_TRAINER_THREADS": threads,
            "GYRE_TRAINER_NICENESS": str(settings.trainer_niceness),
            "GYRE_TRAINER_MLFLOW_WAIT_S": str(settings.trainer_mlflow_wait_s),
            "GYRE_MLFLOW": settings.mlflow,
            "GYRE_ARTIFACTS": str(settings.artifacts.absolute()),
            "GYRE_LOG_LEVEL": settings.log_level,
            "TMPDIR": str(self._scratch),
        }

    async def run(self, task: Task, on_progress: OnProgress) -> TrainedCandidate:
        """See `Job`."""
        with self._temporary_files():
            # By vfork, not by uvloop's fork: threads that gRPC starts in a forked child crash it now and then.
            command = [sys.executable, "-m", "gyre_trainer.job"]
            process = Popen(command, stdin=PIPE, stdout=PIPE, env=self._env)  # noqa: ASYNC220, S603 - runs at once; ours
            try:
                outcome = await _follow(process, task, on_progress)
            finally:
                process.kill()
                await asyncio.to_thread(process.wait)
                with suppress(BrokenPipeError):
                    _pipes(process)[0].close()
        return _candidate(outcome)

    @contextmanager
    def _temporary_files(self) -> Iterator[None]:
        """The folder of the job's temporary files, of which there is one at a time; a killed trainer's goes, too."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        try:
            yield
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)


async def _follow(process: Popen[bytes], task: Task, on_progress: OnProgress) -> dict[str, Any]:
    """Hand over the task and read until the outcome.

    Raises:
        JobFailed: the process ended without one.
    """
    to_job, from_job = _pipes(process)
    lines = asyncio.StreamReader(limit=_LINE_BYTES)
    reading, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), from_job
    )
    try:
        await asyncio.to_thread(_hand_over, to_job, task)
        async for line in lines:
            said = json.loads(line)
            if "outcome" in said:
                outcome: dict[str, Any] = said
                return outcome
            on_progress(RunState(said["state"]), said["progress"])
    finally:
        reading.close()
    raise JobFailed(f"the job ended with code {await asyncio.to_thread(process.wait)} and said nothing more")


def _pipes(process: Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """A process's standard input and output."""
    if process.stdin is None or process.stdout is None:
        raise JobFailed("the job has no pipes")
    return process.stdin, process.stdout


def _hand_over(to_job: IO[bytes], task: Task) -> None:
    """Write the task, which waits until the job reads; one that has ended already is read of where it is followed."""
    with suppress(BrokenPipeError):
        to_job.write(json.dumps(asdict(task)).encode() + b"\n")
        to_job.flush()


def _candidate(outcome: dict[str, Any]) -> TrainedCandidate:
    if outcome["outcome"] == "refused":
        raise TrainingRefused(outcome["reason"], Quality.of(outcome["quality"]))
    if outcome["outcome"] == "failed":
        raise JobFailed(outcome["reason"])
    return TrainedCandidate(
        folder=Path(outcome["folder"]),
        layout=outcome["layout"],
        columns=tuple(outcome["columns"]),
        sha256=outcome["sha256"],
        measurements=outcome["measurements"],
        mlflow_run_id=outcome["mlflow_run_id"],
        quality=Quality.of(outcome["quality"]),
    )
