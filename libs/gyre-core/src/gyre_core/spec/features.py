"""The feature kinds of `gyre.yaml`; what each computes is in `gyre_core.features`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field as PydanticField
from pydantic import model_validator
from pydantic_core import PydanticCustomError

from gyre_core.spec.duration import Duration
from gyre_core.spec.model import Name, SpecModel

IMPRESSION = "impression"
"""The event word that counts shown items, beside the loop's interaction types."""

Events = Annotated[tuple[Name, ...], PydanticField(min_length=1)]
Windows = Annotated[tuple[Duration, ...], PydanticField(min_length=1, max_length=16)]
HalfLives = Annotated[tuple[Duration, ...], PydanticField(min_length=1, max_length=16)]
Scope = Literal["item", "user", "global"]
DatePart = Literal["year", "month", "weekday", "hour"]
EntityScope = Literal["item", "user"]


class Prior(SpecModel):
    """A smoothing prior: `weight` pseudo-events at `mean`."""

    mean: float = 0.0
    weight: float = PydanticField(default=1.0, gt=0)


class _NamedFeature(SpecModel):
    name: Name


class _StoredFeature(_NamedFeature):
    ttl: Duration | None = None

    @property
    def ttl_s(self) -> float | None:
        """How long the entity's value outlives its last event, seconds; None for the kind's default."""
        return self.ttl.seconds if self.ttl else None


class FieldFeature(_StoredFeature):
    """A declared field: number, boolean, text length, one column for each category value, or parts of a time.

    With `encoding: index` a category is one column: the place of its value in the list, from 1 on, and 0 for none.
    `parts` (UTC; Monday is 0) belong to fields of kind time, a column for each, and are -1 while the time is unknown.
    """

    kind: Literal["field"]
    scope: EntityScope = "item"
    field: Name
    encoding: Literal["one_hot", "index"] = "one_hot"
    parts: tuple[DatePart, ...] = PydanticField(default=(), max_length=4)


class _DecayedFeature(_StoredFeature):
    scope: Scope
    by: Name | None = None
    events: Events
    half_lives: HalfLives


class DecayedCountFeature(_DecayedFeature):
    """Events counted with exponential decay, one column for each half-life.

    With `by`, a category field of items, the user's or everyone's events are kept apart by the categories of their
    item, and the column is the mean over the candidate's categories.
    """

    kind: Literal["decayed_count"]


class DecayedMeanFeature(_DecayedFeature):
    """The decayed mean of the events' value, smoothed by a prior, one column for each half-life; `by` as in a count."""

    kind: Literal["decayed_mean"]
    prior: Prior = Prior()


class DecayedRateFeature(_DecayedFeature):
    """Decayed events over decayed `per` events, smoothed by a prior, one column for each half-life; `by` as in a count.

    With scope global, `by: genres` and `per: [impression]` it is the click rate of the candidate's genres.
    """

    kind: Literal["decayed_rate"]
    per: Events
    prior: Prior = Prior()


class _WindowedFeature(_StoredFeature):
    scope: Scope
    events: Events
    windows: Windows
    mode: Literal["sliding", "tumbling"] = "sliding"
    buckets: int = PydanticField(default=12, ge=1, le=120)

    @model_validator(mode="after")
    def _buckets_of_sliding(self) -> _WindowedFeature:
        if self.mode == "tumbling" and "buckets" in self.model_fields_set:
            raise PydanticCustomError("window_buckets", "must give `buckets` only with `mode: sliding`")
        return self


class WindowedCountFeature(_WindowedFeature):
    """Events counted in windows of time, one column for each window.

    A sliding window ends with the request and is counted in `buckets` parts; of the oldest part, that it covers only to
    a share, that share counts. A tumbling window is the last complete one of those that lie end to end since 1970 UTC.
    """

    kind: Literal["windowed_count"]


class WindowedRateFeature(_WindowedFeature):
    """Events over `per` events in windows of time, smoothed by a prior, one column for each; windows as in a count."""

    kind: Literal["windowed_rate"]
    per: Events
    prior: Prior = Prior()


class AffinityFeature(_StoredFeature):
    """How much of the user's decayed events fell on the candidate's values of a category field."""

    kind: Literal["affinity"]
    scope: Literal["user"] = "user"
    field: Name
    events: Events
    half_lives: HalfLives


class AgeFeature(_StoredFeature):
    """Days since the entity's first or last event, or since one of its `time` fields."""

    kind: Literal["age"]
    scope: EntityScope = "item"
    of: Literal["first_event", "last_event"] | None = None
    events: tuple[Name, ...] = ()
    field: Name | None = None
    default: float = 0.0

    @model_validator(mode="after")
    def _one_source(self) -> AgeFeature:
        if (self.of is None) == (self.field is None):
            raise PydanticCustomError("age_source", "must give either `of` with `events`, or `field`")
        if (self.of is None) != (not self.events):
            raise PydanticCustomError("age_events", "must give `events` with `of`, and only then")
        return self


class HistoryFeature(_StoredFeature):
    """The user's last items: `<name>_seen`, and with `field` the share of them that share a value, `<name>_overlap`."""

    kind: Literal["history"]
    scope: Literal["user"] = "user"
    events: Events
    length: int = PydanticField(default=20, ge=1, le=200)
    field: Name | None = None


class RankFeature(_NamedFeature):
    """The rank of an earlier column among the candidates, 0 lowest to 1 highest, ties averaged."""

    kind: Literal["rank"]
    of: Name


class ZScoreFeature(_NamedFeature):
    """An earlier column standardised among the candidates."""

    kind: Literal["zscore"]
    of: Name


class ContextFeature(_NamedFeature):
    """The request's `hour` or `weekday` (UTC, Monday is 0), or a number given with the request."""

    kind: Literal["context"]
    field: Name
    default: float = 0.0


Feature = Annotated[
    FieldFeature
    | DecayedCountFeature
    | DecayedMeanFeature
    | DecayedRateFeature
    | WindowedCountFeature
    | WindowedRateFeature
    | AffinityFeature
    | AgeFeature
    | HistoryFeature
    | RankFeature
    | ZScoreFeature
    | ContextFeature,
    PydanticField(discriminator="kind"),
]
