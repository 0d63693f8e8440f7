"""The whole loop: one `LoopSpec` for each `gyre.yaml`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field as PydanticField
from pydantic import model_validator
from pydantic_core import PydanticCustomError

from gyre_core.spec.columns import feature_columns
from gyre_core.spec.duration import Duration
from gyre_core.spec.features import Feature
from gyre_core.spec.fields import Field
from gyre_core.spec.model import EventName, Float32, LoopName, Name, SpecModel
from gyre_core.spec.operations import (
    ExperimentSpec,
    ModelSpec,
    RetentionSpec,
    RolloutSpec,
    ServingSpec,
    ShardSpec,
    TrainingSpec,
)
from gyre_core.spec.privacy import PrivacySpec
from gyre_core.spec.quality import QualitySpec

_REPLAY_MAX_FUTURE = Duration.parse("1d")


class ValueRange(SpecModel):
    """The range of an interaction's value, both ends included."""

    min: Float32
    max: Float32

    @model_validator(mode="after")
    def _ordered(self) -> ValueRange:
        if self.min > self.max:
            raise PydanticCustomError("range", "must have min <= max")
        return self


class InteractionSpec(SpecModel):
    """One interaction type; with `value`, each event must carry a value in that range, and without it none."""

    value: ValueRange | None = None


class EventsSpec(SpecModel):
    """The interaction types and the bounds on event times.

    `max_future` is 5m by default, and 1d on the replay clock, where only a partition's own events move its time, so
    that a quiet night looks like a leap. Since there one admitted event may move the clock by `max_future`, behaviour
    may be late on the replay clock by the larger of `max_lateness` and `max_future`. Events of the CloudEvents sources
    in `history_sources` may be of any age. A dead letter that is replayed says when Kafka first took it in, by which
    it is judged where `trust_replayed_append_time` is true, but no further back than dead letters are kept.
    """

    max_lateness: Duration = Duration.parse("1h")
    max_field_lateness: Duration = Duration.parse("1m")
    max_future: Duration = Duration.parse("5m")
    history_sources: tuple[str, ...] = ("gyre/import",)
    trust_replayed_append_time: bool = True
    interactions: dict[EventName, InteractionSpec] = PydanticField(min_length=1)

    @property
    def max_field_lateness_s(self) -> float:
        """How long after an event a change of its item's fields may come that the event should have seen, seconds."""
        return self.max_field_lateness.seconds

    @property
    def max_future_s(self) -> float:
        """How far ahead an event may be, seconds: of Kafka's time of it, and on the replay clock of its partition's."""
        return self.max_future.seconds


class EntitySpec(SpecModel):
    """The declared fields of items or users."""

    fields: dict[Name, Field] = PydanticField(default_factory=dict)


class LoopSpec(SpecModel):
    """Everything a loop is; read it with `load_loop`, which also checks what one part says about another."""

    version: Literal[1]
    loop: LoopName
    description: str = ""
    clock: Literal["wall", "replay"] = "wall"
    events: EventsSpec
    items: EntitySpec = EntitySpec()
    users: EntitySpec = EntitySpec()
    features: tuple[Feature, ...] = PydanticField(min_length=1, max_length=500)
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    rollout: RolloutSpec = RolloutSpec()
    experiment: ExperimentSpec = ExperimentSpec()
    serving: ServingSpec = ServingSpec()
    quality: QualitySpec = QualitySpec()
    privacy: PrivacySpec = PrivacySpec()
    retention: RetentionSpec = RetentionSpec()
    shards: ShardSpec = ShardSpec()

    @model_validator(mode="after")
    def _fill_dependent_defaults(self) -> LoopSpec:
        """Give `max_future`, label events, salt, clicks and conversions, whose defaults depend on other parts."""
        changes: dict[str, Any] = {}
        if self.clock == "replay" and "max_future" not in self.events.model_fields_set:
            changes["events"] = self.events.model_copy(update={"max_future": _REPLAY_MAX_FUTURE})
        label, experiment = self.training.label, self.experiment
        if not label.events:
            label = label.model_copy(update={"events": tuple(self.events.interactions)})
            changes["training"] = self.training.model_copy(update={"label": label})
        defaults = {"salt": self.loop, "clicks": label.events, "conversions": label.events}
        filled = {name: value for name, value in defaults.items() if not getattr(experiment, name)}
        if filled:
            changes["experiment"] = experiment.model_copy(update=filled)
        for name, value in changes.items():
            object.__setattr__(self, name, value)
        return self

    @property
    def max_lateness(self) -> Duration:
        """How late behaviour may come: by Kafka's time of it, or on the replay clock by its partition's.

        On the replay clock one admitted event may move a partition's clock by `max_future`, which must make no event
        of the others too old.
        """
        late, ahead = self.events.max_lateness, self.events.max_future
        return ahead if self.clock == "replay" and ahead.seconds > late.seconds else late

    @property
    def max_lateness_s(self) -> float:
        """`max_lateness` in seconds."""
        return self.max_lateness.seconds

    def fields(self, scope: str) -> dict[str, Any]:
        """The declared fields of `item` or `user` entities by name; empty for any other scope."""
        return {"item": self.items.fields, "user": self.users.fields}.get(scope, {})

    def columns(self) -> tuple[str, ...]:
        """The names of all features' columns in declared order."""
        return tuple(column for feature in self.features for column in feature_columns(feature, self.fields))

    def model_columns(self) -> tuple[str, ...]:
        """The columns that the model reads, in the order it reads them, each once; all when none are named."""
        by_feature = {feature.name: feature_columns(feature, self.fields) for feature in self.features}
        names = self.model.features or self.columns()
        chosen = [column for name in names for column in by_feature.get(name, (name,))]
        return tuple(dict.fromkeys(chosen))
