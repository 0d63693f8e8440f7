"""The feature kinds of `gyre.yaml`; what each computes is in `gyre_core.features`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field as PydanticField
from pydantic import model_validator
from pydantic_core import PydanticCustomError

from gyre_core.spec.duration import Duration
from gyre_core.spec.fields import Category
from gyre_core.spec.model import Float32, Name, SpecModel

IMPRESSION = "impression"
"""The event word that counts shown items, beside the loop's interaction types."""

Events = Annotated[tuple[Name, ...], PydanticField(min_length=1)]
Windows = Annotated[tuple[Duration, ...], PydanticField(min_length=1, max_length=16)]
HalfLives = Annotated[tuple[Duration, ...], PydanticField(min_length=1, max_length=16)]
Scope = Literal["item", "user", "global"]
DatePart = Literal["year", "month", "weekday", "hour"]
EntityScope = Literal["item", "user"]
PRIOR_BUCKETS = 64
"""Into how many groups a smoothed rate sums items or users, by a hash of their id, to learn how much they differ."""
_BUCKETS = 12
CLOCK_FIELDS = ("hour", "weekday")
"""What a context feature may name that comes from the request's time."""


class Prior(SpecModel):
    """A smoothing prior: `weight` pseudo-events at `mean`."""

    mean: Float32 = 0.0
    weight: Float32 = PydanticField(default=1.0, gt=0)


class _NamedFeature(SpecModel):
    name: Name


class _StoredFeature(_NamedFeature):
    ttl: Duration | None = None

    @property
    def ttl_s(self) -> float | None:
        """How long the entity's value outlives its last update, seconds; None for the kind's default."""
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


class SmoothedRateFeature(_StoredFeature):
    """Decayed events over decayed `per` events, smoothed by a Beta prior that is learnt from all items or all users.

    The prior's mean is everybody's rate, with `by` that of the candidate's categories. Its weight is large where all
    have nearly one rate, and small where the rates differ much: then few events of its own already count. `prior`
    stands in until there are events enough to learn from. The rate is a share: each of `events` should follow one of
    `per`.
    """

    kind: Literal["smoothed_rate"]
    scope: EntityScope = "item"
    by: Name | None = None
    events: Events
    per: Events
    half_lives: HalfLives
    prior: Prior = Prior(weight=10.0)

    @model_validator(mode="after")
    def _share(self) -> SmoothedRateFeature:
        if not 0 <= self.prior.mean <= 1:
            raise PydanticCustomError("prior_mean", "must have a prior with a mean from 0 to 1: the rate is a share")
        if self.by is not None and self.scope == "user":
            raise PydanticCustomError("smoothed_by", "must give `by` only with scope item: users have no categories")
        return self


class _WindowedFeature(_StoredFeature):
    scope: Scope
    events: Events
    windows: Windows
    mode: Literal["sliding", "tumbling"] = "sliding"
    buckets: int = PydanticField(default=_BUCKETS, ge=1, le=120)

    @model_validator(mode="after")
    def _buckets_of_sliding(self) -> _WindowedFeature:
        # A loop that was written out and read again gives every default.
        if self.mode == "tumbling" and self.buckets != _BUCKETS:
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
    """The share of the user's decayed events that fell on the candidate's categories of a field; 0 without any.

    One column for each half-life; of an item with several categories, the shares are added.
    """

    kind: Literal["affinity"]
    scope: Literal["user"] = "user"
    field: Name
    events: Events
    half_lives: HalfLives


class AgeFeature(_StoredFeature):
    """Days since the entity's first or last event, or since one of its `time` fields; `default` without any."""

    kind: Literal["age"]
    scope: EntityScope = "item"
    of: Literal["first_event", "last_event"] | None = None
    events: tuple[Name, ...] = ()
    field: Name | None = None
    default: Float32 = 0.0

    @model_validator(mode="after")
    def _one_source(self) -> AgeFeature:
        if (self.of is None) == (self.field is None):
            raise PydanticCustomError("age_source", "must give either `of` with `events`, or `field`")
        if (self.of is None) != (not self.events):
            raise PydanticCustomError("age_events", "must give `events` with `of`, and only then")
        return self


class HistoryFeature(_StoredFeature):
    """The user's last `length` events: `<name>_seen` is 1 where one is of the candidate, else 0.

    With `field`, `<name>_overlap` is the share of them whose item has a category in common with the candidate. Both are
    0 without a history.
    """

    kind: Literal["history"]
    scope: Literal["user"] = "user"
    events: Events
    length: int = PydanticField(default=20, ge=1, le=200)
    field: Name | None = None


class VectorFeature(_StoredFeature):
    """A field of kind vector: a column for each of its numbers, `<name>_0` and so on, all 0 while it is unknown.

    With `with`, a vector field of users of the same length, it is one column instead: the `cosine` of the user's vector
    and the candidate's, or their `dot` product; 0 while either is unknown.
    """

    kind: Literal["vector"]
    scope: EntityScope = "item"
    field: Name
    with_: Name | None = PydanticField(default=None, alias="with")
    measure: Literal["cosine", "dot"] = "cosine"

    @model_validator(mode="after")
    def _compared(self) -> VectorFeature:
        if self.with_ is not None and self.scope != "item":
            raise PydanticCustomError("vector_scope", "must have scope item: `with` names the user's vector")
        if self.with_ is None and self.measure != "cosine":
            raise PydanticCustomError("vector_measure", "must give `measure` only together with `with`")
        return self


class PositionFeature(_NamedFeature):
    """The candidate's place in the order in which the caller gave the candidates, from 0.

    It is where the caller put the candidate, not where it was shown. Users see first what stands first: where the
    caller's order decides what is shown, a model that reads this column learns to repeat that order.
    """

    kind: Literal["position"]


class DiversityFeature(_NamedFeature):
    """The share of the candidates before it in the caller's order that have a category of a field in common with it.

    High means that the list has had much of the kind already; the first candidate has 0.
    """

    kind: Literal["diversity"]
    field: Name


class RankFeature(_NamedFeature):
    """The rank of an earlier column among the candidates, 0 lowest to 1 highest, ties averaged."""

    kind: Literal["rank"]
    of: Name


class ZScoreFeature(_NamedFeature):
    """An earlier column standardised among the candidates, to mean 0 and deviation 1; 0 where all are equal."""

    kind: Literal["zscore"]
    of: Name


class ContextFeature(_NamedFeature):
    """The request's `hour` or `weekday` (UTC, Monday is 0), or a number or label given with the request.

    With `values` it is the label of that name (device, referrer): a column for each value, all 0 for any other label.
    """

    kind: Literal["context"]
    field: Name
    default: Float32 = 0.0
    values: tuple[Category, ...] = PydanticField(default=(), max_length=256)

    @model_validator(mode="after")
    def _number_or_label(self) -> ContextFeature:
        if self.values and self.field in CLOCK_FIELDS:
            raise PydanticCustomError("context_clock", "must give no `values` with hour or weekday: they are numbers")
        if self.values and self.default:
            raise PydanticCustomError("context_default", "must give `default` only without `values`")
        if len(set(self.values)) != len(self.values):
            raise PydanticCustomError("context_values", "must not list a value twice")
        return self


COMPARING_KINDS = frozenset({"rank", "zscore", "diversity"})
"""The kinds whose columns depend on all candidates of a request: a sample of them does not give the same numbers."""
ORDERED_KINDS = frozenset({"position", "diversity"})
"""The kinds whose columns depend on the order in which the caller gave the candidates."""

Feature = Annotated[
    FieldFeature
    | DecayedCountFeature
    | DecayedMeanFeature
    | DecayedRateFeature
    | SmoothedRateFeature
    | WindowedCountFeature
    | WindowedRateFeature
    | AffinityFeature
    | AgeFeature
    | HistoryFeature
    | VectorFeature
    | PositionFeature
    | DiversityFeature
    | RankFeature
    | ZScoreFeature
    | ContextFeature,
    PydanticField(discriminator="kind"),
]
