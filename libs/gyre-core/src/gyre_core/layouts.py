"""The feature layouts of a loop side by side: their definitions, which of them are wanted, and what becomes of each.

`gyre.yaml` holds only the newest layout. A model reads the layout that it was trained on, so each layout's own
definition is kept in the topic `features.layouts` for as long as a model names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import Self

from pydantic import Field as PydanticField

from gyre_core.features import Layout
from gyre_core.keys import layout_store
from gyre_core.spec import Feature, Field, InteractionSpec, LoopSpec, ModelSpec, VectorField
from gyre_core.spec.loop import EntitySpec
from gyre_core.spec.model import EventName, LoopName, Name, SpecModel

MAX_LAYOUTS = 4
"""How many layouts of a loop are maintained at once."""
NEWEST = "gyre.yaml"
"""What wants the newest layout, in `wanted_by`."""
_DECLARED_AFTER_S = 1e-3
"""By how much a layout is declared after the one that was declared last, whatever the clock says."""


class LayoutState(StrEnum):
    """What becomes of a layout's values; the names are those of the proto's `LayoutState` without `LAYOUT_STATE_`.

    FILLING: they are being filled from the past, and nobody reads them yet; READY: they follow the stream and are
    served; RETIRED: nothing wants them, they follow the stream no longer and are deleted.
    """

    FILLING = "FILLING"
    READY = "READY"
    RETIRED = "RETIRED"


class ModelRole(IntEnum):
    """What a model is named for, the most important first; the numbers are those of the proto's `ModelRole`.

    LIVE answers requests, LAST_GOOD where the live one fails; CANDIDATE is in its rollout, WAITING is registered and
    its rollout has not begun.
    """

    LIVE = 1
    LAST_GOOD = 2
    CANDIDATE = 3
    WAITING = 4

    @property
    def words(self) -> str:
        """The role as a person reads it, such as `last good`."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model that requests are sent to, or may be sent to soon, and the hash of its layout, or an empty text."""

    version: str
    role: ModelRole
    layout: str


class LayoutDefinition(SpecModel):
    """The part of a loop's spec that its layout is compiled from: what the hash covers, and what popularity is."""

    loop: LoopName
    interactions: dict[EventName, InteractionSpec] = PydanticField(min_length=1)
    items: dict[Name, Field] = PydanticField(default_factory=dict)
    users: dict[Name, Field] = PydanticField(default_factory=dict)
    features: tuple[Feature, ...] = PydanticField(min_length=1)
    fallback_feature: Name | None = None
    genre_field: Name | None = None

    @classmethod
    def of(cls, spec: LoopSpec) -> Self:
        """The definition of a loop's newest layout."""
        return cls(
            loop=spec.loop,
            interactions=spec.events.interactions,
            items=spec.items.fields,
            users=spec.users.fields,
            features=spec.features,
            fallback_feature=spec.serving.fallback_feature,
            genre_field=spec.serving.recommend.genre_field,
        )

    def spec(self, newest: LoopSpec) -> LoopSpec:
        """The loop as this layout's stream and readers see it: the newest spec with this definition's part.

        The model reads all columns, since what `model.features` names may not exist in this layout.
        """
        recommend = newest.serving.recommend.model_copy(update={"genre_field": self.genre_field})
        serving = {"fallback_feature": self.fallback_feature, "recommend": recommend}
        return newest.model_copy(
            update={
                "events": newest.events.model_copy(update={"interactions": self.interactions}),
                "items": EntitySpec(fields=self.items),
                "users": EntitySpec(fields=self.users),
                "features": self.features,
                "model": ModelSpec(),
                "serving": newest.serving.model_copy(update=serving),
            }
        )

    def fields(self) -> Iterator[tuple[str, str]]:
        """(path in gyre.yaml, kind) of every declared field, items' first; a vector's kind holds its length."""
        for scope, fields in (("items", self.items), ("users", self.users)):
            for name, field in fields.items():
                length = f" of length {field.length}" if isinstance(field, VectorField) else ""
                yield f"{scope}.fields.{name}", f"{field.kind}{length}"


@dataclass(frozen=True, slots=True)
class KnownLayout:
    """A layout as the topic `features.layouts` says it is.

    Attributes:
        hash: of the layout.
        definition: what it is compiled from.
        state: whether its values are being filled, served, or no longer maintained.
        declared_time: wall time at which it last became the newest of gyre.yaml, unix seconds; the latest is that of
            the layout that was declared last, also where a process whose clock was ahead had declared one before.
        change_time: of its last change of state, unix seconds.
        filled: while it is filled, count of the offsets that it holds.
        total: while it is filled, count of the offsets that it is to hold.
        wanted_by: in words for a person; empty once nothing wants it.
        generation: which of its stores holds its values, counted from 0: where it is wanted again after it was retired,
            it is filled into a new one, since the keys of the one before are deleted.
    """

    hash: str
    definition: LayoutDefinition
    state: LayoutState
    declared_time: float
    change_time: float
    filled: int = 0
    total: int = 0
    wanted_by: tuple[str, ...] = ()
    generation: int = 0

    @property
    def is_maintained(self) -> bool:
        """Whether its values follow the stream, or are being filled."""
        return self.state is not LayoutState.RETIRED

    @property
    def filled_share(self) -> float:
        """How much of it is filled, 0 to 1: 1 once it is READY, and 0 where the total is not known or it is RETIRED."""
        if self.state is LayoutState.READY:
            return 1.0
        return min(self.filled / self.total, 1.0) if self.total else 0.0

    def with_state(self, state: LayoutState, *, now: float) -> KnownLayout:
        """A copy in another state from now (unix seconds) on, its counts at 0.

        One that leaves RETIRED gets the next generation, and so an empty store.
        """
        generation = self.generation + (not self.is_maintained and state is not LayoutState.RETIRED)
        return replace(self, state=state, change_time=now, filled=0, total=0, generation=generation)

    def former_stores(self) -> frozenset[str]:
        """Its stores that nobody writes or reads any more, by `layout_store`; where it is RETIRED, all of them."""
        return frozenset(layout_store(self.hash, each) for each in range(self.generation + (not self.is_maintained)))


class LayoutRefused(Exception):  # noqa: N818 - reads as what it says about the definition
    """The newest definition cannot be maintained beside the others; `reason` is TOO_MANY_LAYOUTS or KIND_CHANGED."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def compiled(known: KnownLayout, newest: LoopSpec) -> LoopSpec | None:
    """The spec of a known layout; None where this release compiles another layout, by its hash, from it."""
    spec = known.definition.spec(newest)
    return spec if Layout.compile(spec).hash == known.hash else None


def wanted_layouts(newest: str, models: Iterable[NamedModel]) -> dict[str, tuple[str, ...]]:
    """Which layouts are wanted, by hash, the most important first, and by what; there may be more than `MAX_LAYOUTS`.

    First comes what answers requests, then what gyre.yaml declares, then what may answer soon.

    Args:
        newest: hash of the layout of gyre.yaml.
        models: that requests are sent to, or may be sent to soon.
    """
    found: dict[str, list[str]] = {}
    ordered = sorted((each for each in models if each.layout), key=lambda each: each.role)
    serving = [each for each in ordered if each.role <= ModelRole.LAST_GOOD]
    for each in serving:
        found.setdefault(each.layout, []).append(f"{each.role.words} {each.version}")
    found.setdefault(newest, []).insert(0, NEWEST)
    for each in ordered[len(serving) :]:
        found.setdefault(each.layout, []).append(f"{each.role.words} {each.version}")
    return {layout: tuple(by) for layout, by in found.items()}


def maintained_layouts(
    newest: str, models: Iterable[NamedModel], known: Mapping[str, KnownLayout]
) -> dict[str, tuple[str, ...]]:
    """Which of the known layouts are to be maintained, by hash, and by what they are wanted: at most `MAX_LAYOUTS`.

    They are the first of `wanted_layouts`, in its order, those that are not known left out.
    """
    wanted = wanted_layouts(newest, models).items()
    return dict([(layout, by) for layout, by in wanted if layout in known][:MAX_LAYOUTS])


def require_maintainable(
    newest: str, definition: LayoutDefinition, known: Mapping[str, KnownLayout], models: Sequence[NamedModel]
) -> None:
    """Check that the newest definition can be maintained beside the layouts that models name; nothing is changed.

    Raises:
        LayoutRefused: it would be one too many (TOO_MANY_LAYOUTS), or a field has another kind in a layout that is
            maintained (KIND_CHANGED).
    """
    require_kinds(newest, definition, known)
    current = known.get(newest)
    if current is not None and current.is_maintained:
        return
    wanted = {
        layout: by for layout, by in wanted_layouts(newest, models).items() if layout in known or layout == newest
    }
    if len(wanted) > MAX_LAYOUTS:
        last, by = [each for each in wanted.items() if each[0] != newest][-1]
        raise LayoutRefused(
            "TOO_MANY_LAYOUTS",
            f"layout {newest} of gyre.yaml would be the {len(wanted)}th that is maintained, and at most {MAX_LAYOUTS}"
            f" are: layout {last} must retire first, which is wanted by {', '.join(by)}",
        )


def require_kinds(newest: str, definition: LayoutDefinition, known: Mapping[str, KnownLayout]) -> None:
    """Check that no field has another kind in a layout that is maintained; retired ones may differ.

    Raises:
        LayoutRefused: one has (KIND_CHANGED).
    """
    declared = dict(definition.fields())
    for layout in known.values():
        if not layout.is_maintained:
            continue
        for path, kind in layout.definition.fields():
            if declared.get(path, kind) != kind:
                why = f"for {', '.join(layout.wanted_by)}" if layout.wanted_by else "until it retires"
                own = " (the same columns)" if layout.hash == newest else ""
                raise LayoutRefused(
                    "KIND_CHANGED",
                    f"{path}: kind is {declared[path]} in gyre.yaml, and {kind} in layout {layout.hash}{own}, which is"
                    f" maintained {why}: a field's kind cannot change in place. Add a new"
                    f" field beside it, and remove {path} once no model reads it",
                )


@dataclass(frozen=True, slots=True)
class Declared:
    """The newest layout as a process's gyre.yaml declares it: its hash and definition."""

    hash: str
    definition: LayoutDefinition


def declare(newest: Declared, known: Mapping[str, KnownLayout], *, now: float) -> KnownLayout | None:
    """The record to write when a process starts with the newest layout; None where the topic has it already.

    Nothing is written here. Its `declared_time` is after all others, by a clock that is behind theirs, too.

    Args:
        newest: what gyre.yaml declares.
        known: the layouts of the topic, by hash.
        now: wall time, unix seconds.
    """
    current = known.get(newest.hash)
    declared_time = max([now, *(each.declared_time + _DECLARED_AFTER_S for each in known.values())])
    if current is None:
        return KnownLayout(newest.hash, newest.definition, LayoutState.FILLING, declared_time, now, wanted_by=(NEWEST,))
    is_latest = latest(known) == newest.hash
    if is_latest and current.definition == newest.definition and current.is_maintained:
        return None
    state = current if current.is_maintained else current.with_state(LayoutState.FILLING, now=now)
    time = current.declared_time if is_latest else declared_time
    return replace(state, definition=newest.definition, declared_time=time)


def latest(known: Mapping[str, KnownLayout]) -> str:
    """The hash of the layout that was declared last; empty where none was."""
    return max(known.values(), key=lambda each: each.declared_time).hash if known else ""


@dataclass(frozen=True, slots=True)
class Wants:
    """Which layouts a process that maintains them should keep, and for how long the others: the input of `changes`.

    Attributes:
        newest: hash of the layout of its gyre.yaml; where that is refused, of the layout that was declared last.
        models: that requests are sent to, or may be sent to soon.
        unwanted_since: wall time since which a layout is not to be maintained, unix seconds, by hash.
        grace_s: how long a layout is maintained after that, seconds.
    """

    newest: str
    models: Sequence[NamedModel]
    unwanted_since: Mapping[str, float]
    grace_s: float


def changes(wants: Wants, known: Mapping[str, KnownLayout], *, now: float) -> list[KnownLayout]:
    """The records to write: retired layouts wanted again become FILLING, ones unwanted for `grace_s` RETIRED.

    Nothing is written here. A layout has a record only where its state or what wants it changes. Only who holds the
    gyre.yaml that was declared last retires a layout, or says that nothing wants it any more: while processes are
    restarted one after the other, the older ones know nothing of the newest layout.

    Args:
        wants: what is wanted.
        known: the layouts of the topic, by hash.
        now: wall time, unix seconds.
    """
    maintained = maintained_layouts(wants.newest, wants.models, known)
    decides = latest(known) == wants.newest
    changed: list[KnownLayout] = []
    for layout in known.values():
        by, after = maintained.get(layout.hash), layout
        if by is not None and not layout.is_maintained:
            after = layout.with_state(LayoutState.FILLING, now=now)
        if decides or (by is not None and not layout.is_maintained):
            after = replace(after, wanted_by=by or ())
        gone = by is None and layout.is_maintained and decides
        if gone and now - wants.unwanted_since.get(layout.hash, now) >= wants.grace_s:
            after = replace(layout.with_state(LayoutState.RETIRED, now=now), wanted_by=())
        if after != layout:
            changed.append(after)
    return changed


def removable(
    wants: Wants, known: Mapping[str, KnownLayout], needed_s: Callable[[KnownLayout], float], *, now: float
) -> list[str]:
    """Hashes of the layouts whose records may be deleted: retired at least `needed_s` ago, and wanted by nothing.

    Nothing is deleted here. As in `changes`, only who holds the gyre.yaml that was declared last decides.

    Args:
        wants: what is wanted.
        known: the layouts of the topic, by hash.
        needed_s: how long the definition of a layout is needed after its retirement, seconds.
        now: wall time, unix seconds.
    """
    if latest(known) != wants.newest:
        return []
    wanted = wanted_layouts(wants.newest, wants.models)
    retired = [each for each in known.values() if not each.is_maintained and each.hash not in wanted]
    return [each.hash for each in retired if now - each.change_time >= needed_s(each)]
