"""Follows the feature layouts of loops, as the topic `features.layouts` says they stand."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from gyre.events.v1 import features_pb2 as pb
from gyre.events.v1 import models_pb2 as models
from gyre_core.features import Layout
from gyre_core.layouts import (
    KnownLayout,
    LayoutDefinition,
    LayoutRefused,
    LayoutState,
    ModelRole,
    NamedModel,
    compiled,
    latest,
    require_maintainable,
)
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from pydantic import ValidationError

from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import View, existing_topics, read_compacted

TOPIC = "features.layouts"
TYPES = message_types(pb.FeatureLayout)
_STATE = "LAYOUT_STATE_"
_LOG = logging.getLogger(__name__)


def layout_message(loop: str, layout: KnownLayout) -> pb.FeatureLayout:
    """The message that a layout is published as in `features.layouts`; nothing is sent."""
    message = pb.FeatureLayout(
        loop=loop,
        layout=layout.hash,
        definition=layout.definition.model_dump_json(),
        state=pb.LayoutState.Value(_STATE + layout.state),
        filled_events=layout.filled,
        total_events=layout.total,
        wanted_by=layout.wanted_by,
        generation=layout.generation,
    )
    message.declared_time.FromNanoseconds(round(layout.declared_time * 1e9))
    message.change_time.FromNanoseconds(round(layout.change_time * 1e9))
    return message


def layout_of(message: pb.FeatureLayout) -> KnownLayout:
    """The layout of a message of `layout_message`; a change dated later than now by another clock counts as one of now.

    Raises:
        ValueError: the definition or the state is none that this release knows.
    """
    return KnownLayout(
        hash=message.layout,
        definition=LayoutDefinition.model_validate_json(message.definition),
        state=LayoutState(pb.LayoutState.Name(message.state).removeprefix(_STATE)),
        declared_time=message.declared_time.ToNanoseconds() / 1e9,
        change_time=min(message.change_time.ToNanoseconds() / 1e9, time.time()),
        filled=message.filled_events,
        total=message.total_events,
        wanted_by=tuple(message.wanted_by),
        generation=message.generation,
    )


def named_models(view: models.RolloutView) -> list[NamedModel]:
    """The models that a rollout state names, in its order, without those of no role.

    Of a state of an older version, which names none: live and candidate by its arms.
    """
    named = [NamedModel(each.version, ModelRole(each.role), each.layout) for each in view.models if each.role]
    if named:
        return named
    roles = {"live": ModelRole.LIVE, "candidate": ModelRole.CANDIDATE}
    return [NamedModel(arm.version, roles[arm.name], arm.layout) for arm in view.arms if arm.name in roles]


class LayoutCatalog:
    """The layouts of some loops, followed for as long as the context is entered; Kafka may be away meanwhile.

    It only reads. Asking for another loop than those given raises KeyError.

    Args:
        bootstrap: Kafka's host:port list.
        loops: the newest specs, by loop.
        on_change: called with the loop after each record of its topic, those read at the start included.
    """

    def __init__(
        self, bootstrap: str, loops: Mapping[str, LoopSpec], *, on_change: Callable[[str], object] = lambda _loop: None
    ) -> None:
        self._bootstrap, self._loops, self._on_change = bootstrap, dict(loops), on_change
        self._known: dict[str, dict[str, KnownLayout]] = {loop: {} for loop in loops}
        self._current: dict[str, KnownLayout | None] = dict.fromkeys(loops)
        self._specs: dict[tuple[str, str], tuple[LayoutDefinition, LoopSpec | None]] = {}
        self._views: dict[str, View] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start to follow; nothing is known until `ready`."""
        for loop in self._loops:
            view = View(self._bootstrap, topic(loop, TOPIC), TYPES, on_change=self._taker(loop))
            self._views[loop] = await self._stack.enter_async_context(view)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Follow no more."""
        await self._stack.aclose()

    async def ready(self) -> None:
        """Wait, without limit, until everything that was in the topics of all loops at the start is known."""
        await asyncio.gather(*(view.ready() for view in self._views.values()))

    async def catch_up(self, loop: str) -> None:
        """Wait, without limit, until all that is in a loop's topic now is known; `is_ready` is False meanwhile."""
        await self._views[loop].catch_up()

    async def follow(self) -> None:
        """Wait for ever, for a background task; layouts are followed without it, and again after an error."""
        await asyncio.gather(*(view.wait_for(lambda _: False) for view in self._views.values()))

    def is_ready(self, loop: str) -> bool:
        """Whether what was in a loop's topic at the start, or at the last `catch_up`, is known."""
        return self._views[loop].is_ready

    def known(self, loop: str) -> Mapping[str, KnownLayout]:
        """The layouts of a loop by hash, retired ones too, as a mapping that later records change.

        A record whose definition this release cannot read is logged and passed over.
        """
        return self._known[loop]

    def current(self, loop: str) -> KnownLayout | None:
        """The layout read where none is asked for: the newest READY one, else the newest not retired; None for none."""
        return self._current[loop]

    def summaries(self, loop: str) -> list[pb.FeatureLayout]:
        """The records of a loop's layouts that are not retired, the one declared last first, without definitions."""
        known = [each for each in self._known[loop].values() if each.is_maintained]
        made = [layout_message(loop, each) for each in sorted(known, key=lambda each: -each.declared_time)]
        for each in made:
            each.ClearField("definition")
        return made

    def spec(self, loop: str, layout: str) -> LoopSpec | None:
        """The spec of a loop as one of its layouts sees it.

        None where it is not known, or this release cannot compile it. Compiled once; one that cannot be is logged.
        """
        known = self._known[loop].get(layout)
        if known is None:
            return None
        held = self._specs.get((loop, layout))
        if held is None or held[0] != known.definition:
            held = self._specs[loop, layout] = known.definition, compiled(known, self._loops[loop])
            if held[1] is None:
                _LOG.error("a layout is not one of this release", extra={"loop": loop, "layout": layout})
        return held[1]

    def _taker(self, loop: str) -> Callable[[str, Event | None], None]:
        def take(key: str, event: Event | None) -> None:
            if event is None:
                self._known[loop].pop(key, None)
                self._specs.pop((loop, key), None)
            elif (layout := _readable(event.message)) is not None:
                self._known[loop][layout.hash] = layout
            self._current[loop] = _current(self._known[loop])
            self._on_change(loop)

        return take


def _current(known: Mapping[str, KnownLayout]) -> KnownLayout | None:
    ready = {layout.hash: layout for layout in known.values() if layout.state is LayoutState.READY}
    maintained = {layout.hash: layout for layout in known.values() if layout.is_maintained}
    return known.get(latest(ready) or latest(maintained))


async def read_layouts(bootstrap: str, loop: str, *, timeout_s: float = 30.0) -> dict[str, KnownLayout]:
    """The layouts of a loop as they are now by hash, retired ones too; those that this release cannot read are logged.

    Raises:
        TimeoutError: Kafka does not answer in time, or has no such topic.
    """
    events = await read_compacted(bootstrap, topic(loop, TOPIC), TYPES, timeout_s=timeout_s)
    found = (_readable(event.message) for event in events.values())
    return {layout.hash: layout for layout in found if layout is not None}


async def refusal_of(bootstrap: str, spec: LoopSpec) -> LayoutRefused | None:
    """Why a spec's layout cannot be maintained beside those of the running mesh; None where it can, or none runs.

    The error is returned, not raised, and nothing is changed. A broker that is not up is waited for without limit.

    Raises:
        TimeoutError: a topic could not be read within 30 s.
    """
    layouts, rollouts = topic(spec.loop, TOPIC), topic(spec.loop, "models.rollouts")
    if len(await existing_topics(bootstrap, (layouts, rollouts))) < 2:
        return None
    known = await read_layouts(bootstrap, spec.loop)
    view = (await read_compacted(bootstrap, rollouts, message_types(models.RolloutView))).get(spec.loop)
    named = [] if view is None else named_models(view.message)
    try:
        require_maintainable(Layout.compile(spec).hash, LayoutDefinition.of(spec), known, named)
    except LayoutRefused as refused:
        return refused
    return None


def _readable(message: pb.FeatureLayout) -> KnownLayout | None:
    """A layout; None where this release cannot read its definition, which a newer one wrote."""
    try:
        return layout_of(message)
    except (ValidationError, ValueError) as error:
        facts = {"loop": message.loop, "layout": message.layout, "problem": str(error)[:200]}
        _LOG.error("a layout's definition cannot be read", extra=facts)
        return None
