"""The steps of a training run: read, check and join, train, evaluate, write down."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gyre_core.features import Layout
from gyre_core.layouts import LayoutDefinition
from gyre_core.models import MANIFEST_FILE
from gyre_core.spec import LoopSpec

from gyre_trainer import artifact
from gyre_trainer.adapters.tables import LoopTables
from gyre_trainer.artifact import Manifest
from gyre_trainer.domain import Pins, RunState, Task, TrainingRefused
from gyre_trainer.gate import check_against_incumbent
from gyre_trainer.quality.examples import reference_files
from gyre_trainer.quality.findings import Findings, quality_in
from gyre_trainer.quality.gate import pass_gate
from gyre_trainer.settings import JobSettings
from gyre_trainer.training_set import F32, TrainingSet, features_under

_LOG = logging.getLogger(__name__)

Tell = Callable[[RunState, float], None]


@dataclass(frozen=True)
class Work:
    """A task, its loop, and where to say how far it is."""

    task: Task
    spec: LoopSpec
    layout: Layout
    tell: Tell


def execute(task: Task, settings: JobSettings, tell: Tell) -> dict[str, Any]:
    """Do a task; answer the candidate.

    An artefact that an earlier start of the same run finished is taken as it is: somebody may use it already.

    Raises:
        TrainingRefused: the data or the model did not pass.
    """
    spec = LoopSpec.model_validate_json(task.spec)
    work = Work(task, spec, Layout.compile(spec), tell)
    folder = settings.artifacts.absolute() / spec.loop / task.version
    manifest = Manifest.read(folder) if (folder / MANIFEST_FILE).exists() else _made(work, settings, folder)
    tell(RunState.EVALUATING, 0.95)
    return {
        "folder": str(folder),
        "layout": manifest.layout,
        "columns": manifest.columns,
        "sha256": manifest.sha256,
        "measurements": manifest.measurements,
        "mlflow_run_id": _record(work, settings, folder, manifest.measurements),
        "quality": asdict(quality_in(folder)),
    }


def _made(work: Work, settings: JobSettings, folder: Path) -> Manifest:
    """Make the artefact; what was found in the data stays, and goes to MLflow, where it is refused too.

    Raises:
        TrainingRefused: the data or the model did not pass.
    """
    findings = Findings(work.spec, work.task)
    try:
        return _make(work, settings, folder, findings)
    except TrainingRefused as refusal:
        artifact.write_refusal(folder, findings.files())
        quality = quality_in(folder)
        _record(work, settings, folder, quality.measurements)
        raise TrainingRefused(str(refusal), quality) from refusal


def _make(work: Work, settings: JobSettings, folder: Path, findings: Findings) -> Manifest:
    """Read, check, join, train, evaluate, write."""
    task, spec, layout = work.task, work.spec, work.layout
    work.tell(RunState.SNAPSHOT, 0.05)
    incumbent = Incumbent.read(task, spec, layout)
    beside = incumbent.layout if incumbent is not None and incumbent.layout.hash != layout.hash else None
    tables = LoopTables(settings, spec.loop).read(spec, layout, Pins(task.snapshots, task.now), beside=beside)
    work.tell(RunState.GATE, 0.2)
    data = pass_gate(findings, layout, tables)
    training, held_out = data.split(spec.training.evaluation.holdout)
    model, training_s = _trained(work, training)
    work.tell(RunState.EVALUATING, 0.9)
    # torch takes seconds to import, which data that is refused need not pay.
    from gyre_trainer.ranker import score

    measured = _evaluate(work, held_out, score(model, held_out.features))
    if incumbent is not None:
        rows = held_out.features if beside is None else features_under(beside, tables, held_out)
        measured["incumbent_ndcg_at_10"] = incumbent.ndcg(rows, held_out)
        check_against_incumbent(spec, measured["ndcg_at_10"], measured["incumbent_ndcg_at_10"])
    measured |= {
        "impressions": float(len(data)),
        "served_share": float(data.served.mean()),
        "training_s": training_s,
        "unlabelled_impressions": float(data.unlabelled),
        "open_impressions": float(data.open_windows),
        "late_interactions": float(data.late),
        "unreadable_rows": float(sum(count for count, _ in tables.unreadable.values())),
    }
    files = {**findings.files(), **reference_files(spec, data, layout)}
    golden = held_out.features[held_out.held]
    return artifact.write(folder, model, golden, _manifest(work, measured | findings.summary()), files=files)


def _trained(work: Work, training: TrainingSet) -> tuple[Any, float]:
    """The model, and how many seconds that took."""
    from gyre_trainer.ranker import train

    epochs = work.spec.model.parameters.epochs
    work.tell(RunState.TRAINING, 0.35)
    started = time.perf_counter()
    model = train(
        work.layout,
        work.spec.model,
        training,
        on_epoch=lambda epoch, _loss: work.tell(RunState.TRAINING, 0.35 + 0.5 * epoch / epochs),
    )
    return model, time.perf_counter() - started


def _evaluate(work: Work, held_out: TrainingSet, scores: Any) -> dict[str, float]:
    """Measure the candidate beside popularity on the held-out impressions."""
    from gyre_trainer.ranker import evaluate

    measured = evaluate(scores, held_out.relevance)
    popular = work.spec.serving.fallback_feature
    if popular is not None:
        column = held_out.features[:, :, work.layout.index[popular]]
        measured["popularity_ndcg_at_10"] = evaluate(column, held_out.relevance)["ndcg_at_10"]
    return measured


@dataclass(frozen=True)
class Incumbent:
    """The live model, and the layout that it reads."""

    folder: Path
    layout: Layout

    @classmethod
    def read(cls, task: Task, spec: LoopSpec, newest: Layout) -> Incumbent | None:
        """The model of a task to compare with; None for none, or where its layout cannot be compiled any more."""
        if not task.incumbent:
            return None
        folder = Path(task.incumbent)
        manifest = Manifest.read(folder)
        if manifest.layout == newest.hash:
            return cls(folder, newest)
        if manifest.definition:
            layout = Layout.compile(LayoutDefinition.model_validate(manifest.definition).spec(spec))
            if layout.hash == manifest.layout:
                return cls(folder, layout)
        facts = {"folder": task.incumbent, "layout": manifest.layout}
        _LOG.warning("the live model's layout is not known: it is not compared", extra=facts)
        return None

    def ndcg(self, features: F32, held_out: TrainingSet) -> float:
        """Its NDCG@10 on held-out impressions, by their features in its own layout, [impressions, items, columns]."""
        from gyre_trainer.export import score_with
        from gyre_trainer.ranker import evaluate

        scores = score_with(artifact.graph(self.folder), features.reshape(-1, features.shape[2]))
        return evaluate(scores.reshape(held_out.relevance.shape), held_out.relevance)["ndcg_at_10"]


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
        definition=LayoutDefinition.of(work.spec).model_dump(mode="json"),
    )


def _record(work: Work, settings: JobSettings, folder: Path, measured: Mapping[str, float]) -> str:
    from gyre_trainer.adapters.mlflow import Entry, record

    model, task = work.spec.model, work.task
    given = {"family": model.family, "hidden": model.hidden, **model.parameters.model_dump()}
    entry = Entry(
        loop=work.spec.loop,
        run_id=task.run_id,
        version=task.version,
        tags={
            "gyre.trigger_id": task.trigger_id,
            "gyre.layout": work.layout.hash,
            "gyre.refused": str(not (folder / MANIFEST_FILE).exists()).lower(),
            **{f"gyre.snapshot.{table}": str(snapshot) for table, snapshot in task.snapshots.items()},
        },
        params={name: str(value) for name, value in given.items()},
        metrics=measured,
        folder=folder,
    )
    return record(settings.mlflow, entry, wait_s=settings.trainer_mlflow_wait_s)
