"""The job `maintain`: removes old models that nothing names, their artefacts, records in MLflow and runs."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from gyre_core.models import MANIFEST_FILE, PINS_FOLDER
from gyre_core.spec import LoopSpec
from gyre_runtime import Unavailable, load_loops
from gyre_runtime.named_models import named_versions

from gyre_trainer.adapters.store import SqliteRuns
from gyre_trainer.domain import Run, RunState
from gyre_trainer.retention import RetentionPlan, StoredModel, plan
from gyre_trainer.settings import TrainerSettings

_FIRST_AFTER_S = 600.0
_LOG = logging.getLogger(__name__)
_DRAFT, _REMOVED = ".", ".removed"
_DRAFT_AGE_S = 86_400.0
RemoveRecord = Callable[[str, str], bool]
"""Removes what MLflow holds of a run of a loop, blocking; whether that is done."""


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def maintain(settings: TrainerSettings, *, dry_run: bool, say: Callable[[str], object] = _print) -> int:
    """Print the plan for every loop and, unless it is a dry run, carry it out; answer 1 where something waits.

    What goes wrong with one loop leaves the others their turn.
    """
    return _maintain(settings, load_loops(settings), dry_run=dry_run, say=say)


def _maintain(
    settings: TrainerSettings, loops: Mapping[str, LoopSpec], *, dry_run: bool, say: Callable[[str], object]
) -> int:
    code = 0
    with closing(SqliteRuns(settings.state_dir)) as store:
        for name, spec in loops.items():
            job = Maintenance(name, store, settings.artifacts.absolute() / name, _removal(settings))
            try:
                is_done = _maintained(job, settings, spec, dry_run=dry_run, say=say)
            except (Unavailable, TimeoutError, OSError) as error:
                say(f"{name}: not all was done: {error!r:.200}")
                is_done = False
            code = code if is_done else 1
    return code


def _maintained(
    job: Maintenance, settings: TrainerSettings, spec: LoopSpec, *, dry_run: bool, say: Callable[[str], object]
) -> bool:
    """Do one loop; whether nothing waits.

    Raises:
        Unavailable: the runs or Kafka do not answer; also TimeoutError.
        OSError: the artefacts cannot be read.
    """
    # What is stored is looked at first: what is announced while this runs is then not among it.
    stored = job.stored()
    named = asyncio.run(named_versions(settings.kafka, spec.loop))
    decided = plan(stored, named, spec.retention, now=time.time())
    for line in decided.lines(spec.loop, time.time()):
        say(line)
    return not decided.is_refused and (dry_run or job.carry_out(decided))


async def maintain_forever(settings: TrainerSettings, loops: Mapping[str, LoopSpec], every_s: float) -> None:
    """Carry the job out again and again, until cancelled, the first time soon after the start.

    Args:
        settings: of the trainer.
        loops: as they were at the start, like those of everything else that runs.
        every_s: seconds between two times.
    """
    pause_s = min(_FIRST_AFTER_S, every_s)
    while True:
        await asyncio.sleep(pause_s)
        pause_s = every_s
        try:
            if await asyncio.to_thread(_maintain, settings, loops, dry_run=False, say=_LOG.info):
                _LOG.warning("some old models wait for the next turn")
        except (Unavailable, OSError) as error:
            _LOG.warning("old models are removed later", extra={"problem": str(error)})


def _removal(settings: TrainerSettings) -> RemoveRecord:
    def removed(loop: str, run_id: str) -> bool:
        # MLflow takes seconds to import, which only a job with something to remove pays.
        from gyre_trainer.adapters.mlflow import remove

        return remove(settings.mlflow, loop, run_id, wait_s=settings.trainer_mlflow_wait_s)

    return removed


class Maintenance:
    """Removes the old models of one loop.

    Args:
        loop: its name.
        store: the runs.
        folder: of its artefacts.
        remove_record: removes a record in MLflow.
    """

    def __init__(self, loop: str, store: SqliteRuns, folder: Path, remove_record: RemoveRecord) -> None:
        self._loop, self._store, self._folder = loop, store, folder
        self._remove_record = remove_record

    def stored(self) -> list[StoredModel]:
        """All that is stored of the loop's models."""
        runs = self._store.newest(self._loop, -1)
        folders = {path.name: path for path in self._folders()}
        known = [self._of(run, run.version in folders) for run in runs]
        versions, incumbents = {run.version for run in runs}, _incumbents(runs)
        strange = [path for name, path in folders.items() if name not in versions]
        models = [*known, *map(_strange, strange)]
        return [replace(each, is_incumbent=each.version in incumbents) for each in models]

    def _of(self, run: Run, has_folder: bool) -> StoredModel:
        return StoredModel(
            run_id=run.run_id,
            version=run.version,
            time=run.update_time,
            is_final=run.state.is_final,
            has_folder=has_folder,
            has_record=bool(run.mlflow_run_id),
            is_marked=run.removed_time is not None,
            is_removed=run.is_removed and not has_folder,
            is_registered=run.state is RunState.REGISTERED,
        )

    def _folders(self) -> Iterator[Path]:
        return (path for path in self._folder.glob("*") if path.is_dir() and not path.name.startswith(_DRAFT))

    def carry_out(self, decided: RetentionPlan) -> bool:
        """Remove what was decided; whether nothing waits, as it does where MLflow or the file system does not."""
        self._remove_drafts()
        waiting = [each for each in decided.remove if not self._tried(each)]
        for run_id in decided.forget:
            self._store.forget(run_id)
        return not waiting

    def _tried(self, model: StoredModel) -> bool:
        """Remove a model; whether that is done: one that the file system holds does not hold back the others."""
        if model.version in _incumbents(self._store.newest(self._loop, -1)):
            return False  # a run began since the plan was made
        try:
            return self._removed(model)
        except OSError as error:
            facts = {"loop": self._loop, "version": model.version, "problem": f"{error!r:.200}"}
            _LOG.warning("a model waits for the file system", extra=facts)
            return False

    def _removed(self, model: StoredModel) -> bool:
        if model.run_id:
            self._store.mark_removed(model.run_id, time.time(), is_done=False)
            if model.version and not self._remove_record(self._loop, model.run_id) and model.has_record:
                _LOG.warning("a model waits for MLflow", extra={"loop": self._loop, "version": model.version})
                return False
        if model.version:
            remove_folder(self._folder / model.version)
        if model.run_id:
            self._store.mark_removed(model.run_id, time.time(), is_done=True)
        return True

    def _remove_drafts(self) -> None:
        """Remove what was left by a job that was killed, and by a training run that was killed long ago."""
        pinned = list((self._folder / PINS_FOLDER).glob("*"))  # before the runs: one that starts now is not among them
        under_way = {run.run_id for run in self._store.newest(self._loop, -1) if not run.state.is_final}
        for path in pinned:
            if path.name not in under_way:
                shutil.rmtree(path, ignore_errors=True)
        for path in self._folder.glob(f"{_DRAFT}*"):
            if path.name == PINS_FOLDER:
                continue
            if path.name.endswith(_REMOVED) or time.time() - path.stat().st_mtime > _DRAFT_AGE_S:
                shutil.rmtree(path, ignore_errors=True)


def _incumbents(runs: Iterable[Run]) -> set[str]:
    """The versions that runs under way are compared with."""
    return {run.incumbent for run in runs if run.incumbent and not run.state.is_final}


def _strange(folder: Path) -> StoredModel:
    """An artefact folder that no run is known of."""
    is_registered = (folder / MANIFEST_FILE).exists()
    return StoredModel("", folder.name, folder.stat().st_mtime, has_folder=True, is_registered=is_registered)


def remove_folder(folder: Path) -> None:
    """Remove an artefact folder, which vanishes as a whole before any file of it is deleted."""
    if folder.exists():
        gone = folder.with_name(f"{_DRAFT}{folder.name}{_REMOVED}")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
