"""What is removed of old models, and in which order, so that a job killed at any step leaves no reference to nothing.

A run is marked first, so that whoever reads it knows that its model may be gone; then its record in MLflow goes, then
its artefact, which is what the warehouse's snapshots are retained for; last the mark says that all is done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from gyre_core.spec.operations import RetentionSpec


@dataclass(frozen=True, slots=True)
class StoredModel:
    """What is stored of a run: its row, and perhaps an artefact folder and a record in MLflow.

    Attributes:
        run_id: of the run; empty for a folder that no run is known of.
        version: that it made, or would have made; empty where it never got so far.
        time: of its last change, unix seconds.
        is_final: whether the run is over.
        has_folder: whether there is an artefact folder.
        has_record: whether MLflow is known to hold a record.
        is_marked: whether its removal was begun.
        is_removed: whether its removal was finished.
        is_registered: whether it passed its gate, so that it may have been rolled out.
        is_incumbent: whether a run under way is compared with it.
    """

    run_id: str
    version: str
    time: float
    is_final: bool = True
    has_folder: bool = False
    has_record: bool = False
    is_marked: bool = False
    is_removed: bool = False
    is_registered: bool = False
    is_incumbent: bool = False


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What a job is to do for one loop.

    Attributes:
        remove: models to remove, oldest first.
        forget: runs whose rows go, of which nothing else is left.
        retained: why the others stay: how many for each reason.
        is_refused: whether nothing may go, since nobody says which models serve.
    """

    remove: tuple[StoredModel, ...]
    forget: tuple[str, ...]
    retained: dict[str, int]
    is_refused: bool = False

    def lines(self, loop: str, now: float) -> list[str]:
        """The plan in words for a person."""
        if self.is_refused:
            rule = "models.rollouts must name the models that serve, or hold that none does, before any is removed"
            return [f"{loop}: nothing is removed: models are stored and none is named: {rule}"]
        stays = ", ".join(f"{count} {why}" for why, count in self.retained.items() if count) or "none"
        counts = f"{len(self.remove)} models to remove, {len(self.forget)} runs to forget; stay: {stays}"
        names = [(each.version or each.run_id, (now - each.time) / 86_400) for each in self.remove]
        return [f"{loop}: {counts}", *(f"{loop}: remove {name}, {age_d:.1f} d old" for name, age_d in names)]


def plan(
    models: Iterable[StoredModel], named: Collection[str] | None, retention: RetentionSpec, *, now: float
) -> RetentionPlan:
    """Decide what goes: nothing where registered models are stored and none is named, as in a Kafka that is new.

    Args:
        models: all that is stored of a loop.
        named: versions that serve, may serve soon, or wait for their rollout; None where nobody says.
        retention: how long and how many others stay.
        now: wall time, unix seconds.
    """
    models = list(models)
    if not named and any(each.is_registered and not each.is_removed for each in models):
        return RetentionPlan((), (), {}, is_refused=True)
    named = named or ()
    newest_first = sorted(models, key=lambda each: each.time, reverse=True)
    stored = [each for each in newest_first if not each.is_removed]
    retained = {"named": 0, "under way": 0, "compared with": 0, "among the newest": 0, "young": 0}
    remove: list[StoredModel] = []
    for number, each in enumerate(stored):
        why = _why_retained(each, named, retention, rank=number, now=now)
        if why:
            retained[why] += 1
        else:
            remove.append(each)
    return RetentionPlan(tuple(reversed(remove)), _forgotten(newest_first, retention, now=now), retained)


def _why_retained(
    model: StoredModel, named: Collection[str], retention: RetentionSpec, *, rank: int, now: float
) -> str:
    """Why a model stays; empty where it goes, also where its removal was begun before."""
    if model.version and model.version in named:
        return "named"
    if not model.is_final:
        return "under way"
    if model.is_incumbent:
        return "compared with"
    if model.is_marked:
        return ""
    if rank < retention.min_models:
        return "among the newest"
    return "young" if now - model.time < retention.models_s else ""


def _forgotten(newest_first: Sequence[StoredModel], retention: RetentionSpec, *, now: float) -> tuple[str, ...]:
    old_s = max(retention.model_log_s, retention.models_s)
    return tuple(each.run_id for each in newest_first if each.is_removed and each.run_id and now - each.time > old_s)
