"""Maintains the layouts of one loop side by side: those that gyre.yaml and the models name, each by its own stream."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from aiokafka.errors import KafkaError
from gyre_core.features import Layout
from gyre_core.keys import layout_store
from gyre_core.layouts import (
    Declared,
    KnownLayout,
    LayoutDefinition,
    LayoutRefused,
    LayoutState,
    NamedModel,
    Wants,
    changes,
    declare,
    latest,
    maintained_layouts,
    removable,
    require_maintainable,
)
from gyre_core.spec import LoopSpec
from gyre_runtime import GyreError, Precondition, Unavailable, instrument
from gyre_runtime.events import ReceivedRecord
from gyre_runtime.kafka import ConsumerWork
from gyre_runtime.layouts import LayoutCatalog
from gyre_runtime.loop_work import LoopRunner

from gyre_features.online.layout_program import lease_s
from gyre_features.online.store import OnlineStore
from gyre_features.stream.layout_stream import LayoutStream

_LOOK_S = 1.0
_PROGRESS_S = 5.0
_REFUSED_S = 60.0
_REMOVAL_S = 3600.0
"""How often it is asked whose definition nothing needs any more."""
_DAY_S = 86_400.0
_BOTH_LETTER_S = 30.0
"""How long after a layout was filled records may still have come that it took from the warehouse, by any clock."""
_LOG = logging.getLogger(__name__)

Publish = Callable[[KnownLayout], Awaitable[None]]
Remove = Callable[[str], Awaitable[None]]
Clear = Callable[[Collection[str]], Awaitable[int]]
Open = Callable[[str, LoopSpec], LayoutStream]


@dataclass
class _Running:
    """A layout's stream into one of its stores, made anew each time that it fails, and the task that does so."""

    generation: int
    runner: LoopRunner
    task: asyncio.Task[None]
    stream: LayoutStream | None = None

    @property
    def leads(self) -> bool:
        """Whether this process says how far the layout is."""
        return self.stream is not None and self.stream.is_leader


@dataclass
class LayoutMaintainer:
    """Follows what is wanted of one loop, starts and ends the streams, and says how far each layout is; a `LoopWork`.

    Every process of the stream runs one; a layout's state is said by the member of its group that leads, and what the
    topic says is what all of them maintain. What gyre.yaml declares and cannot be maintained is refused: the loop is
    then not healthy here, and the layouts that models name go on.

    Attributes:
        spec: of the loop, as gyre.yaml has it now.
        catalog: the layouts of the topic.
        models: the models that are named now; None while that is not known, and then no layout's state is changed.
        publish: writes a layout's record, and returns once Kafka has it.
        remove: deletes the record of a layout by its hash, and returns once Kafka knows.
        clear: deletes all keys of some stores of the loop's layouts; answers how many went.
        open: a layout's stream, from its hash and the loop's spec as it sees it.
        ready: awaited before anything is done.
        grace_s: how long a layout is maintained that nothing wants any more.
    """

    spec: LoopSpec
    catalog: LayoutCatalog
    models: Callable[[], Sequence[NamedModel] | None]
    publish: Publish
    remove: Remove
    clear: Clear
    open: Open
    ready: Callable[[], Awaitable[object]]
    grace_s: float
    _running: dict[str, _Running] = field(default_factory=dict, init=False)
    _unwanted: dict[str, float] = field(default_factory=dict, init=False)
    _logged: dict[str, float] = field(default_factory=dict, init=False)
    _opened: set[str] = field(default_factory=set, init=False)
    _cleared: set[str] = field(default_factory=set, init=False)
    _clearing: asyncio.Task[None] | None = field(default=None, init=False)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _refusal: Precondition | None = field(default=None, init=False)
    _is_declared: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._newest = Declared(Layout.compile(self.spec).hash, LayoutDefinition.of(self.spec))

    def stop(self) -> None:
        """Ask `run` to end after the batches under way; returns at once."""
        self._stopping.set()

    async def check(self) -> bool:
        """Whether the streams of all layouts that are read run here and are healthy; False before they have started.

        Raises:
            Precondition: gyre.yaml's layout is refused.
            Exception: what a stream fails with.
        """
        if self._refusal is not None:
            raise self._refusal
        current, known = self.catalog.current(self.spec.loop), self.catalog.known(self.spec.loop)
        read = [each for each in known.values() if each.state is LayoutState.READY or each == current]
        runners = [self._running[each.hash].runner for each in read if each.hash in self._running]
        return bool(runners) and len(runners) == len(read) and all([await each.check() for each in runners])

    async def run(self) -> None:
        """Maintain until `stop`, then end all streams.

        What Kafka or the store do not answer is tried again each second.
        """
        await self.ready()
        try:
            while not self._stopping.is_set():
                await self._look()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), _LOOK_S)
        finally:
            if self._clearing is not None:
                self._clearing.cancel()
                await asyncio.gather(self._clearing, return_exceptions=True)
            await asyncio.gather(*(self._end(each) for each in list(self._running)))

    def stores(self) -> list[OnlineStore]:
        """The stores of the layouts whose streams this process has opened."""
        return [each.stream.store for each in self._running.values() if each.stream is not None]

    async def _look(self) -> None:
        """One look at everything; what Kafka or the store does not answer now, the next look asks again."""
        try:
            models = self.models()
            if models is not None:
                await self._declare(models)
            await self._align()
            for hash_, running in list(self._running.items()):
                if running.leads and running.stream is not None:
                    await self._follow(hash_, running.stream)
            if models is not None:
                await self._change(models)
            self._clear()
            if models is not None:
                await self._remove(models)
        except (KafkaError, Unavailable) as error:
            _LOG.warning("layouts are looked at later", extra={"loop": self.spec.loop, "problem": str(error)})

    async def _declare(self, models: Sequence[NamedModel]) -> None:
        """Have the topic say what gyre.yaml declares, at the start and whenever it is not maintained."""
        known = self.catalog.known(self.spec.loop)
        current = known.get(self._newest.hash)
        if self._is_declared and current is not None and current.is_maintained:
            return
        try:
            require_maintainable(self._newest.hash, self._newest.definition, known, models)
        except LayoutRefused as refused:
            self._refuse(Precondition(refused.reason, f"{self.spec.loop}: {refused}"))
            return
        self._refusal = None
        wanted = declare(self._newest, known, now=time.time())
        if wanted is not None:
            await self._publish(wanted)
        self._is_declared = True

    def _refuse(self, refusal: Precondition) -> None:
        if str(refusal) != str(self._refusal) or self._is_due("refusal", _REFUSED_S):
            _LOG.error("gyre.yaml is refused: %s", refusal, extra={"loop": self.spec.loop, "reason": refusal.reason})
        self._refusal = refusal

    async def _align(self) -> None:
        """Run the streams of the layouts that the topic says are maintained, and no others."""
        loop, known = self.spec.loop, self.catalog.known(self.spec.loop)
        for hash_, running in list(self._running.items()):
            wanted = known.get(hash_)
            if wanted is None or not wanted.is_maintained or wanted.generation != running.generation:
                await self._end(hash_)
                # Another process may have deleted these keys before this one ended its stream, which then wrote more.
                self._cleared.discard(layout_store(hash_, running.generation))
                instrument("gyre_features_layout_filled").set(0.0, loop=loop, layout=hash_)
                _LOG.info("a layout is maintained no more", extra={"loop": loop, "layout": hash_})
        for hash_, layout in known.items():
            spec = self.catalog.spec(loop, hash_) if layout.is_maintained and hash_ not in self._running else None
            if spec is not None:
                self._start(layout, spec)
                _LOG.info("a layout is maintained", extra={"loop": loop, "layout": hash_, "state": layout.state})

    def _start(self, layout: KnownLayout, spec: LoopSpec) -> None:
        hash_ = layout.hash

        def make() -> ConsumerWork:
            stream = self.open(hash_, spec)
            self._running[hash_].stream = stream
            return stream.work(self.ready)

        runner = LoopRunner(self.spec.loop, make)
        self._opened.add(layout_store(hash_, layout.generation))
        task = asyncio.create_task(runner.run(), name=f"layout {hash_}")
        self._running[hash_] = _Running(layout.generation, runner, task)

    async def _end(self, hash_: str) -> None:
        running = self._running[hash_]
        running.runner.stop()
        await asyncio.gather(running.task, return_exceptions=True)
        del self._running[hash_]
        self._logged.pop(hash_, None)

    async def _follow(self, hash_: str, stream: LayoutStream) -> None:
        """Say how far a layout is that is being filled."""
        known = self.catalog.known(self.spec.loop).get(hash_)
        if known is None or known.generation != self._running[hash_].generation:
            return
        if known.state is LayoutState.FILLING:
            progress = await stream.progress()
            after = replace(known, filled=progress.filled, total=progress.total)
            if progress.is_filled:
                after = known.with_state(LayoutState.READY, now=time.time())
            if progress.is_filled or self._is_due(hash_, _PROGRESS_S):
                facts = {"loop": self.spec.loop, "layout": hash_, "filled": f"{after.filled_share:.1%}"}
                _LOG.info("a layout is %s", after.state.lower(), extra=facts)
            if after != known:
                await self._publish(after)
            known = after
        instrument("gyre_features_layout_filled").set(known.filled_share, loop=self.spec.loop, layout=hash_)

    def _is_due(self, what: str, every_s: float) -> bool:
        """Whether something was not logged for so long."""
        now = time.monotonic()
        if now - self._logged.get(what, float("-inf")) < every_s:
            return False
        self._logged[what] = now
        return True

    async def _change(self, models: Sequence[NamedModel]) -> None:
        """Fill what is wanted again, and retire what nothing wants any more; each layout's leader says it."""
        known, now = self.catalog.known(self.spec.loop), time.time()
        wants = self._wants(models, known, now)
        for layout in changes(wants, known, now=now):
            running = self._running.get(layout.hash)
            if running is None or running.leads:
                await self._publish(layout)
                facts = {"loop": self.spec.loop, "layout": layout.hash, "wanted_by": list(layout.wanted_by)}
                _LOG.info("a layout is %s", layout.state.lower(), extra=facts)

    def _clear(self) -> None:
        """Have the keys deleted of stores that are not maintained any more, once in each process that wrote them.

        Each does so after its own stream has ended, so that the last one finds what all wrote; the leader of the newest
        layout does so for processes that were killed before. Looking for keys takes its time, which nobody waits for.
        """
        if self._clearing is not None and not self._clearing.done():
            return
        former = {each for layout in self.catalog.known(self.spec.loop).values() for each in layout.former_stores()}
        running = {layout_store(hash_, each.generation) for hash_, each in self._running.items()}
        self._opened &= former | running
        self._cleared &= former
        leader = self._running.get(self._newest.hash)
        mine = former if leader is not None and leader.leads else former & self._opened
        if left := mine - running - self._cleared:
            self._clearing = asyncio.create_task(self._delete(left), name=f"retired layouts of {self.spec.loop}")

    async def _delete(self, stores: Collection[str]) -> None:
        try:
            count = await self.clear(stores)
        except GyreError as error:
            _LOG.warning("retired layouts are deleted later", extra={"loop": self.spec.loop, "problem": str(error)})
            return
        self._cleared |= set(stores)
        if count:
            facts = {"loop": self.spec.loop, "layouts": sorted(stores), "keys": count}
            _LOG.info("the keys of retired layouts are deleted", extra=facts)

    def _wants(self, models: Sequence[NamedModel], known: Mapping[str, KnownLayout], now: float) -> Wants:
        """What is wanted; where gyre.yaml is refused, what was declared last stands for it, since all others go on."""
        newest = self._newest.hash if self._refusal is None else latest(known)
        maintained = maintained_layouts(newest, models, known)
        self._unwanted = {each: self._unwanted.get(each, now) for each in known if each not in maintained}
        return Wants(newest, models, self._unwanted, self.grace_s)

    async def _remove(self, models: Sequence[NamedModel]) -> None:
        """Remove the definitions of layouts that were retired so long ago that nothing needs them any more.

        The leader of the newest layout does so. A record that is gone takes nothing with it: no model names the layout,
        and its values expired before.
        """
        leader = self._running.get(self._newest.hash)
        if leader is None or not leader.leads or not self._is_due("removal", _REMOVAL_S):
            return
        loop = self.spec.loop
        await self.catalog.catch_up(loop)
        now, known = time.time(), self.catalog.known(loop)
        for hash_ in removable(self._wants(models, known, now), known, self._needed_s, now=now):
            await self.remove(hash_)
            await self.catalog.catch_up(loop)
            _LOG.info("the definition of a retired layout is removed", extra={"loop": loop, "layout": hash_})

    def _needed_s(self, layout: KnownLayout) -> float:
        """How long a definition is needed after the retirement: to forget a user in values that have not expired yet.

        A day more is for processes that were late to end their stream, and for clocks.
        """
        return lease_s(Layout.compile(layout.definition.spec(self.spec))) + _DAY_S

    async def _publish(self, layout: KnownLayout) -> None:
        """Write a record, and wait until it is read here, so that the next look does not write it again."""
        await self.publish(layout)
        await self.catalog.catch_up(self.spec.loop)

    def generation_of(self, hash_: str) -> int:
        """The generation of the store that a layout's stream writes here.

        KeyError for a layout that is not maintained here.
        """
        return self._running[hash_].generation

    def is_filling(self, hash_: str) -> bool:
        """Whether the topic says that a layout is being filled; False for a layout that it does not know."""
        known = self.catalog.known(self.spec.loop).get(hash_)
        return known is not None and known.state is LayoutState.FILLING

    def gives_way(self, hash_: str) -> bool:
        """Whether a layout is being filled while another is read, so that it takes only its share of the time."""
        current = self.catalog.current(self.spec.loop)
        return self.is_filling(hash_) and current is not None and current.hash != hash_

    def writes_dead_letters(self, hash_: str, record: ReceivedRecord) -> bool:
        """Whether a layout's stream writes the dead letter of a refused record, which the others only count.

        The current layout's does. What had come before that was filled it may have taken from the warehouse, which
        holds no refused records, so the layout that was current before writes those, however late it reads them.
        """
        current, known = self.catalog.current(self.spec.loop), self.catalog.known(self.spec.loop).get(hash_)
        if current is None or current.hash == hash_:
            return True
        is_ready = known is not None and known.state is LayoutState.READY
        return is_ready and record.timestamp / 1000 < current.change_time + _BOTH_LETTER_S
