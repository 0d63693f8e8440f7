"""How a loop's model is trained, rolled out, tested and served."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from gyre_core.spec.duration import Duration
from gyre_core.spec.model import Float32, Name, SpecModel

Share = Annotated[float, Field(ge=0, le=1)]


class TrainingParameters(SpecModel):
    """Hyperparameters of the built-in ranker; a batch is `batch_impressions` impressions with all their items."""

    epochs: int = Field(default=6, ge=1, le=1000)
    learning_rate: float = Field(default=0.003, gt=0, le=1)
    batch_impressions: int = Field(default=64, ge=1, le=65_536)
    weight_decay: float = Field(default=0.0, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=7, ge=0)


class ModelSpec(SpecModel):
    """Which columns the model reads, its family and hidden layers; no `features` means all columns, in order."""

    features: tuple[Name, ...] = ()
    family: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(64, 32), max_length=8)
    parameters: TrainingParameters = TrainingParameters()


class LabelSpec(SpecModel):
    """Which interactions within the attribution window make a shown item relevant; no `events` means all types.

    An interaction that names no request belongs to every impression of the user that held the item: `credit` gives each
    its whole weight (`all`), the last one only (`last`), equal shares (`linear`), or shares that halve with each
    `half_life` before the last (`decay`). Several interactions with one shown item count as the `greatest`, or their
    `sum`.
    """

    events: tuple[Name, ...] = ()
    attribution_window: Duration = Duration.parse("30m")
    weights: dict[Name, Annotated[Float32, Field(ge=0)]] = Field(default_factory=dict)
    credit: Literal["all", "last", "linear", "decay"] = "all"
    half_life: Duration | None = None
    combine: Literal["greatest", "sum"] = "greatest"

    @property
    def attribution_window_s(self) -> float:
        """The attribution window in seconds."""
        return self.attribution_window.seconds

    @property
    def half_life_s(self) -> float:
        """How much earlier an impression gets half of the last one's credit, seconds; by default half the window."""
        return self.half_life.seconds if self.half_life else self.attribution_window_s / 2

    def weight(self, event: str) -> float:
        """The relevance that an interaction of this type gives: its weight, by default 1; 0 where it is no label."""
        return self.weights.get(event, 1.0) if event in self.events else 0.0


class HistorySpec(SpecModel):
    """How much of the past a training run reads: so many impressions at most, the newest."""

    impressions: int = Field(default=50_000, ge=1)


class VolumeTrigger(SpecModel):
    """Start a training run after so many new interactions; imported history does not count."""

    events: int = Field(ge=1)


class TriggerSpec(SpecModel):
    """What starts a training run by itself, whichever is due first; without either, runs start only when asked for."""

    volume: VolumeTrigger | None = None
    schedule: Duration | None = None

    @property
    def schedule_s(self) -> float | None:
        """The time between scheduled runs in seconds; None where none are scheduled."""
        return self.schedule.seconds if self.schedule else None


class GateSpec(SpecModel):
    """When data is too thin to train on, so that a run is refused.

    That is with fewer than `min_impressions` labelled impressions, or where more than `max_missing_share` of their
    items have no features at all.
    """

    min_impressions: int = Field(default=500, ge=1)
    max_missing_share: Share = 0.2


class EvaluationSpec(SpecModel):
    """How a candidate is compared with the live model: by NDCG@10 on the newest share `holdout` of the impressions.

    Its relative gain must be at least `min_relative_ndcg`: -0.02 lets it be 2 % worse.
    """

    holdout: float = Field(default=0.1, gt=0, lt=1)
    min_relative_ndcg: float = Field(default=-0.02, ge=-1, le=10)


class TrainingSpec(SpecModel):
    """From labels to a candidate."""

    label: LabelSpec = LabelSpec()
    history: HistorySpec = HistorySpec()
    triggers: TriggerSpec = TriggerSpec()
    gate: GateSpec = GateSpec()
    evaluation: EvaluationSpec = EvaluationSpec()


class RolloutStep(SpecModel):
    """A candidate's share of traffic, held for at least `hold` and at least `min_requests` of its requests."""

    share: float = Field(gt=0, le=1)
    hold: Duration | None = None
    min_requests: int = Field(default=0, ge=0)

    @property
    def hold_s(self) -> float:
        """The shortest time at this share, seconds."""
        return self.hold.seconds if self.hold else 0.0


class GuardrailSpec(SpecModel):
    """What rolls a candidate back: its share of failed requests, its p99 latency, or that over the live model's p99."""

    max_error_rate: Share = 0.01
    max_latency_ratio: float = Field(default=2.0, gt=0)
    max_latency_p99: Duration = Duration.parse("100ms")

    @property
    def max_latency_p99_s(self) -> float:
        """The highest tolerated p99 latency, seconds."""
        return self.max_latency_p99.seconds


_STEPS = (
    RolloutStep(share=0.1, hold=Duration.parse("10s"), min_requests=100),
    RolloutStep(share=0.5, hold=Duration.parse("10s"), min_requests=100),
    RolloutStep(share=1.0),
)


class RolloutSpec(SpecModel):
    """The steps from nothing to all traffic, and the guardrails on the way."""

    steps: tuple[RolloutStep, ...] = Field(default=_STEPS, min_length=1, max_length=20)
    guardrails: GuardrailSpec = GuardrailSpec()

    @model_validator(mode="after")
    def _rising_to_one(self) -> RolloutSpec:
        shares = [step.share for step in self.steps]
        if shares != sorted(set(shares)) or shares[-1] != 1.0:
            raise PydanticCustomError("steps", "must have `steps` whose shares rise and end at 1.0")
        return self


class ExperimentSpec(SpecModel):
    """How versions are compared.

    The share of requests answered in random order, the salt of the user hash (the loop's name by default), and which
    interaction types click and convert (the label's events by default).
    """

    exploration: float = Field(default=0.02, ge=0, le=0.5)
    salt: str = Field(default="", max_length=100)
    clicks: tuple[Name, ...] = ()
    conversions: tuple[Name, ...] = ()


class RecommendSpec(SpecModel):
    """Where `Recommend` finds its candidates: popular items, with `genre_field` half of the user's genres."""

    popular: int = Field(default=200, ge=1, le=1000)
    genre_field: Name | None = None


class ServingSpec(SpecModel):
    """Deadlines and limits of the request path, and the feature column that it orders by where no model answers.

    `logged_rest` candidates that were not shown are logged beside those that were.
    """

    deadline: Duration = Duration.parse("200ms")
    feature_timeout: Duration = Duration.parse("50ms")
    inference_timeout: Duration = Duration.parse("80ms")
    max_candidates: int = Field(default=1000, ge=1, le=1000)
    logged_rest: int = Field(default=10, ge=0, le=1000)
    fallback_feature: Name | None = None
    recommend: RecommendSpec = RecommendSpec()

    @property
    def deadline_s(self) -> float:
        """The deadline of a whole request, seconds."""
        return self.deadline.seconds

    @property
    def feature_timeout_s(self) -> float:
        """The longest wait for features, seconds."""
        return self.feature_timeout.seconds

    @property
    def inference_timeout_s(self) -> float:
        """The longest wait for scores, seconds."""
        return self.inference_timeout.seconds


class RetentionSpec(SpecModel):
    """How long what a loop writes is retained; what a live, last good, candidate or running model names, always.

    `behavior` bounds the behaviour topics in Kafka, `model_log` those of the flow of models: rollout events, candidates
    and verdicts. `rollouts` is how many ended rollouts the deployer and the monitor remember. Of the models that
    nothing names the newest `min_models` stay, and all that are younger than `models`: artefacts, copies in MLflow and
    training runs.
    """

    behavior: Duration = Duration.parse("30d")
    model_log: Duration = Duration.parse("365d")
    rollouts: int = Field(default=100, ge=10, le=1000)
    models: Duration = Duration.parse("30d")
    min_models: int = Field(default=10, ge=0, le=10_000)

    @property
    def behavior_s(self) -> float:
        """How long behaviour events stay in Kafka, seconds."""
        return self.behavior.seconds

    @property
    def model_log_s(self) -> float:
        """How long events of the flow of models stay in Kafka, seconds."""
        return self.model_log.seconds

    @property
    def models_s(self) -> float:
        """How long a model that nothing names stays, seconds."""
        return self.models.seconds


class ShardSpec(SpecModel):
    """Into how many partitions and virtual shards the loop's topics and its online store are split."""

    kafka_partitions: int = Field(default=4, ge=1, le=1024)
    online_shards: int = Field(default=1, ge=1, le=1024)
