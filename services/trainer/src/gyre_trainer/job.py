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
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from gyre_core.features import Layout
from gyre_core.models import MANIFEST_FILE
from gyre_core.spec import LoopSpec
from gyre_runtime import load_settings
from gyre_runtime.telemetry import setup_logging

from gyre_trainer import artifact
from gyre_trainer.adapters.tables import LoopTables
from gyre_trainer.artifact import Manifest
from gyre_trainer.domain import Pins, Refused, State, Task
from gyre_trainer.gate import check_against_incumbent, check_data
from gyre_trainer.settings import TrainerSettings
from gyre_trainer.training_set import TrainingSet, build

_LOG = logging.getLogger(__name__)
_ORPHANED = 3
_MAX_REASON_CHARS = 300

Tell = Callable[[State, float], None]


@dataclass(frozen=True)
class Work:
    """A task, its loop, and where to say how far it is."""

    task: Task
    spec: LoopSpec
    layout: Layout
    tell: Tell


def execute(task: Task, settings: TrainerSettings, tell: Tell) -> dict[str, Any]:
    """Do a task; answer the candidate.

    An artefact that an earlier start of the same run finished is taken as it is: somebody may use it already.

    Raises:
        Refused: the data or the model did not pass.
    """
    spec = LoopSpec.model_validate_json(task.spec)
    work = Work(task, spec, Layout.compile(spec), tell)
    folder = settings.artifacts.absolute() / spec.loop / task.version
    manifest = Manifest.read(folder) if (folder / MANIFEST_FILE).exists() else _make(work, settings, folder)
    tell(State.EVALUATING, 0.95)
    return {
        "folder": str(folder),
        "layout": manifest.layout,
        "columns": manifest.columns,
        "sha256": manifest.sha256,
        "measurements": manifest.measurements,
        "mlflow_run_id": _record(work, settings, manifest, folder),
    }


def _make(work: Work, settings: TrainerSettings, folder: Path) -> Manifest:
    """Build, check, train, evaluate, write."""
    task, spec, layout = work.task, work.spec, work.layout
    work.tell(State.SNAPSHOT, 0.05)
    pins = Pins(task.snapshots, task.now)
    tables = LoopTables(settings.warehouse, spec.loop).read(spec, layout, pins)
    data = build(spec, layout, tables, now=task.now)
    work.tell(State.GATE, 0.3)
    check_data(spec, layout, data)
    training, held_out = data.split(spec.training.evaluation.holdout)
    # torch takes seconds to import, which data that is refused need not pay.
    from gyre_trainer.ranker import score, train

    epochs = spec.model.parameters.epochs
    work.tell(State.TRAINING, 0.35)
    started = time.perf_counter()
    model = train(
        layout,
        spec.model,
        training,
        on_epoch=lambda epoch, _loss: work.tell(State.TRAINING, 0.35 + 0.5 * epoch / epochs),
    )
    training_s = time.perf_counter() - started
    work.tell(State.EVALUATING, 0.9)
    measured = _evaluate(work, held_out, score(model, held_out.features))
    measured |= {
        "impressions": float(len(data)),
        "served_share": float(data.served.mean()),
        "training_s": training_s,
    }
    return artifact.write(folder, model, held_out.features[held_out.held], _manifest(work, measured))


def _evaluate(work: Work, held_out: TrainingSet, scores: Any) -> dict[str, float]:
    """Measure the candidate beside popularity and the live model on the held-out impressions.

    Raises:
        Refused: it is worse than the live model by more than the rule allows.
    """
    from gyre_trainer.export import score_with
    from gyre_trainer.ranker import evaluate

    measured = evaluate(scores, held_out.relevance)
    popular = work.spec.serving.fallback_feature
    if popular is not None:
        column = held_out.features[:, :, work.layout.index[popular]]
        measured["popularity_ndcg_at_10"] = evaluate(column, held_out.relevance)["ndcg_at_10"]
    if not work.task.incumbent:
        return measured
    incumbent = Path(work.task.incumbent)
    if Manifest.read(incumbent).layout != work.layout.hash:
        _LOG.warning("the live model reads another layout: it is not compared", extra={"folder": str(incumbent)})
        return measured
    rows = held_out.features.reshape(-1, held_out.features.shape[2])
    beside = score_with(artifact.graph(incumbent), rows).reshape(held_out.relevance.shape)
    measured["incumbent_ndcg_at_10"] = evaluate(beside, held_out.relevance)["ndcg_at_10"]
    check_against_incumbent(work.spec, measured["ndcg_at_10"], measured["incumbent_ndcg_at_10"])
    return measured


def _manifest(work: Work, measured: dict[str, float]) -> Manifest:
    return Manifest(
        loop=work.spec.loop,
        version=work.task.version,
        run_id=work.task.run_id,
        trigger_id=work.task.trigger_id,
        layout=work.layout.hash,
        columns=list(work.layout.columns),
        model_columns=list(work.layout.model_columns),
        snapshots=dict(work.task.snapshots),
        data_time=work.task.now,
        measurements=measured,
        sha256="",
    )


def _record(work: Work, settings: TrainerSettings, manifest: Manifest, folder: Path) -> str:
    from gyre_trainer.adapters.mlflow import Entry, record

    model, task = work.spec.model, work.task
    given = {"family": model.family, "hidden": model.hidden, **model.parameters.model_dump()}
    entry = Entry(
        loop=work.spec.loop,
        run_id=task.run_id,
        version=task.version,
        tags={
            "gyre.trigger_id": task.trigger_id,
            "gyre.layout": manifest.layout,
            **{f"gyre.snapshot.{table}": str(snapshot) for table, snapshot in task.snapshots.items()},
        },
        params={name: str(value) for name, value in given.items()},
        metrics=manifest.measurements,
        folder=folder,
    )
    return record(settings.mlflow, entry, wait_s=settings.trainer_mlflow_wait_s)


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
    settings = load_settings(TrainerSettings)
    setup_logging("trainer-job", settings.log_level)
    task = Task(**json.loads(_first_line()))
    threading.Thread(target=_end_with_the_service, name="service-watch", daemon=True).start()
    os.nice(settings.trainer_niceness)
    pa.set_cpu_count(settings.trainer_threads)

    def say(**facts: Any) -> None:
        output.write(json.dumps(facts) + "\n")

    try:
        outcome = execute(task, settings, lambda state, progress: say(state=state, progress=progress))
    except Refused as refusal:
        say(outcome="refused", reason=str(refusal))
    except Exception as error:  # noqa: BLE001 - the outermost boundary: logged, and said to the service
        _LOG.exception("the job broke", extra={"run_id": task.run_id})
        say(outcome="failed", reason=f"{type(error).__name__}: {error}"[:_MAX_REASON_CHARS])
    else:
        say(outcome="candidate", **outcome)
    output.flush()
    # A request to MLflow that nobody waits for any more must not hold the process.
    os._exit(0)


if __name__ == "__main__":
    main()
