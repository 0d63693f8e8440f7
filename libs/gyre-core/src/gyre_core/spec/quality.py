"""How data is checked before a model is trained on it: the thresholds, and what follows a failed check."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from gyre_core.spec.duration import Duration
from gyre_core.spec.model import SpecModel

Share = Annotated[float, Field(ge=0, le=1)]
CheckName = Annotated[str, StringConstraints(pattern=r"^[a-z_]+(\.[a-z_]+)?$", max_length=64)]
ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Action = Literal["warn", "quarantine", "block"]
_ITEMS = "items."

CHECKS = (
    "completeness.missing",
    "completeness.unreadable",
    "completeness.range",
    "completeness.freshness",
    "completeness.volume",
    "completeness.duplicates",
    "sequence.before_impression",
    "sequence.never_shown",
    "bots",
    "drift.kl",
    "drift.psi",
    "drift.js",
    "drift.wasserstein",
    "drift.domain_classifier",
    "labels.noise",
    "labels.consistency",
    "personal_data",
)
"""Every check of a snapshot or of the live stream, by its full name."""


class Bounds(SpecModel):
    """A range, both ends included."""

    min: float
    max: float

    @model_validator(mode="after")
    def _ordered(self) -> Bounds:
        if self.min > self.max:
            raise PydanticCustomError("range", "must have min <= max")
        return self


class CompletenessCheck(SpecModel):
    """The share of missing values that is tolerated, in `columns` for single ones.

    Columns are `impressions.user_id`, `interactions.user_id`, `interactions.item_id`, `interactions.value` (of types
    that declare one) and `items.<field>`. An item field may be missing anywhere unless `columns` names it.
    `max_unreadable` is the tolerated share of events on the live stream that cannot be read and are dead-lettered.
    """

    max_missing: Share = 0.05
    max_unreadable: Share = 0.05
    columns: dict[ColumnName, Share] = Field(default_factory=dict)

    @property
    def of_items(self) -> tuple[str, ...]:
        """The item fields that are named, without `items.` before them."""
        return tuple(name.removeprefix(_ITEMS) for name in self.columns if name.startswith(_ITEMS))


class RangesCheck(SpecModel):
    """The share of values outside their range that is tolerated.

    `columns` gives ranges of feature columns and of number fields (`items.<field>`). The values of interactions are
    held against the range that `events.interactions` declares.
    """

    max_share: Share = 0.0
    columns: dict[ColumnName, Bounds] = Field(default_factory=dict)

    @property
    def of_items(self) -> dict[str, Bounds]:
        """The ranges of item fields, by their names without `items.` before them."""
        return {name.removeprefix(_ITEMS): each for name, each in self.columns.items() if name.startswith(_ITEMS)}


class FreshnessCheck(SpecModel):
    """How old the newest event may be, by the loop's clock, before the data counts as stale."""

    max_age: Duration = Duration.parse("7d")


class VolumeCheck(SpecModel):
    """How far the last period's count of interactions may be from those before, in robust standard deviations."""

    period: Duration = Duration.parse("1d")
    max_z: float = Field(default=4.0, gt=0)


class DuplicatesCheck(SpecModel):
    """The share of rows with an id that an earlier row has; training takes the first of them in any case."""

    max_share: Share = 0.01


class SequencesCheck(SpecModel):
    """The share of interactions before their impression, or with what it never showed; clocks differ by `tolerance`."""

    tolerance: Duration = Duration.parse("1s")
    max_share: Share = 0.01


class BotsCheck(SpecModel):
    """The share of interactions by users that are too fast or too regular; slower than `min_per_minute` is no bot."""

    max_share: Share = 0.05
    min_per_minute: int = Field(default=30, ge=1)


class DriftCheck(SpecModel):
    """Drift of the model's features against the training set of the live model.

    `alpha` is the probability of an alarm where nothing changed. Judged are impressions newer than that training set,
    once they hold `min_rows` items; at most `max_rows` items are read. The domain classifier, which sees all features
    together, takes `classifier_rows` items of each side, and is left out with 0.
    """

    alpha: float = Field(default=0.01, gt=0, lt=1)
    min_rows: int = Field(default=1000, ge=100)
    max_rows: int = Field(default=50_000, ge=1000, le=5_000_000)
    classifier_rows: int = Field(default=1000, ge=0, le=100_000)


class LabelsCheck(SpecModel):
    """The tolerated share of labels that a cheap classifier confidently denies, and the least agreement of repeats.

    `min_agreement` is Krippendorff's alpha: 1 where repeated exposures always agree, 0 where as often as by chance. At
    most `max_rows` items are judged.
    """

    max_noise: Share = 0.2
    min_agreement: float = Field(default=-0.5, ge=-1, le=1)
    max_rows: int = Field(default=10_000, ge=500, le=1_000_000)


class PersonalDataCheck(SpecModel):
    """What is searched for personal data, in a sample of it; nothing by default.

    `fields` are text fields of items (`title`, or `items.title`) and of users (`users.<field>`), and the ids
    `interactions.user_id` and `interactions.item_id`.
    """

    fields: tuple[ColumnName, ...] = Field(default=(), max_length=32)
    max_share: Share = 0.0
    sample: int = Field(default=1000, ge=1, le=100_000)

    def of(self, scope: Literal["items", "users", "interactions"]) -> tuple[str, ...]:
        """The fields of a scope, without its name before them."""
        full = (name if "." in name else f"items.{name}" for name in self.fields)
        return tuple(name.removeprefix(f"{scope}.") for name in full if name.startswith(f"{scope}."))


class ChecksSpec(SpecModel):
    """The thresholds of each check of a training run's snapshot.

    `max_events` bounds how many interactions, the newest, are read for them.
    """

    completeness: CompletenessCheck = CompletenessCheck()
    ranges: RangesCheck = RangesCheck()
    freshness: FreshnessCheck = FreshnessCheck()
    volume: VolumeCheck = VolumeCheck()
    duplicates: DuplicatesCheck = DuplicatesCheck()
    sequences: SequencesCheck = SequencesCheck()
    bots: BotsCheck = BotsCheck()
    drift: DriftCheck = DriftCheck()
    labels: LabelsCheck = LabelsCheck()
    personal_data: PersonalDataCheck = PersonalDataCheck()
    max_events: int = Field(default=500_000, ge=1000, le=50_000_000)


class LiveChecksSpec(SpecModel):
    """What the checks of the live stream look at: the newest `windows` of each topic.

    With fewer than `min_events` a check says nothing, unless it tolerates none at fault.
    """

    windows: int = Field(default=10, ge=1, le=1000)
    min_events: int = Field(default=100, ge=1)


class QualitySpec(SpecModel):
    """The window of the continuous data-quality counts, the thresholds of checks, and what follows a failed one.

    `actions` go by a check's name (`drift.psi`) or its family (`drift`), the name deciding; `warn` without either.
    `quarantine` leaves the rows at fault out of training; where a check has no such rows it warns. `block` refuses to
    train.
    """

    window: Duration = Duration.parse("60s")
    actions: dict[CheckName, Action] = Field(default_factory=dict)
    checks: ChecksSpec = ChecksSpec()
    live: LiveChecksSpec = LiveChecksSpec()

    @property
    def window_s(self) -> float:
        """The window's length, seconds."""
        return self.window.seconds
