"""What the service is asked for: queue a run for a trigger, start one for a call, find, list and watch runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import replace

from gyre_runtime import Invalid, NotFound, Violation, current_traceparent, instrument, model_tracer, unknown_loop

from gyre_trainer.domain import Erasure, Run, RunState, Trigger, manual_trigger_id
from gyre_trainer.ports import Announcer, RunStore

_REMEMBERED = 200
"""How many runs back a check is known to fire, where none of them got as far as to check its data."""


class RunRegistry:
    """The runs of all loops: who changes one does it here, and whoever watches it is told."""

    def __init__(self, store: RunStore, loops: Collection[str]) -> None:
        self._store = store
        self._loops = loops
        self._watchers: dict[str, set[asyncio.Queue[Run]]] = {}
        self._queued = asyncio.Event()

    def queue(self, trigger: Trigger) -> Run:
        """Queue the run of a trigger; a trigger that came before only answers with its run.

        Raises:
            Invalid: the trigger names a loop that this process does not serve (UNKNOWN_LOOP).
        """
        if trigger.loop not in self._loops:
            rule = f"must be one of {', '.join(self._loops)}"
            violation = Violation("loop", repr(trigger.loop), rule)
            raise Invalid("UNKNOWN_LOOP", str(violation), violations=[violation])
        known = self.find(trigger)
        if known is not None:
            return known
        run = Run.queued(trigger, now=time.time())
        self._store.save(run)
        instrument("gyre_trainer_runs_total").add(loop=run.loop, state=run.state.value.lower())
        self._queued.set()
        return run

    def change(self, run: Run, state: RunState | None = None, **changes: object) -> Run:
        """Keep changes of a run and tell whoever watches it."""
        changed = replace(run, **changes)  # type: ignore[arg-type]  # fields of Run, checked by its constructor
        known = self._store.get(run.run_id)
        if known is not None:
            # Marked while whoever changes it held an older copy.
            erased_time = changed.erased_time if changed.erased_time is not None else known.erased_time
            changed = replace(
                changed, erased_time=erased_time, removed_time=known.removed_time, is_removed=known.is_removed
            )
        if state is not None and state is not run.state:
            changed = replace(changed, state=state, update_time=time.time())
        self._store.save(changed)
        if changed.state is not run.state:
            instrument("gyre_trainer_runs_total").add(loop=run.loop, state=changed.state.value.lower())
        for watcher in self._watchers.get(run.run_id, ()):
            watcher.put_nowait(changed)
        return changed

    def mark_erased(self, loop: str, erasures: Collection[Erasure]) -> list[Run]:
        """Mark the runs of a loop that read what was erased; answer those that were not marked before."""
        hit = ((run, run.erased_at(erasures)) for run in self._store.repeatable(loop))
        return [self.change(run, erased_time=time_s) for run, time_s in hit if time_s is not None]

    def unrecorded(self) -> list[Run]:
        """The marked runs that are over, and whose artefact and record in MLflow are to follow."""
        return self._store.unrecorded()

    def find(self, trigger: Trigger) -> Run | None:
        """The run that a trigger started, or None."""
        return self._store.get(trigger.run_id)

    def next_due(self) -> Run | None:
        """The run under way, else the one that waits longest, else None."""
        return self._store.next_due()

    async def until_queued(self) -> None:
        """Wait until a run was queued since the last wait."""
        await self._queued.wait()
        self._queued.clear()

    def get(self, run_id: str) -> Run:
        """Return a run.

        Raises:
            NotFound: there is none (UNKNOWN_RUN).
        """
        run = self._store.get(run_id)
        if run is None:
            raise NotFound("UNKNOWN_RUN", f"run_id = {run_id!r}: must be the id of a run")
        return run

    def newest(self, loop: str, limit: int) -> list[Run]:
        """List the runs of a loop, newest first.

        Raises:
            NotFound: this process does not serve the loop (UNKNOWN_LOOP).
        """
        self.require(loop)
        return self._store.newest(loop, limit)

    def alerting(self, run: Run) -> Mapping[str, float]:
        """The data-quality checks that fired before a run, and since when, unix seconds."""
        before = (each.alerting for each in self._store.newest(run.loop, _REMEMBERED) if each.run_id != run.run_id)
        # A run that begins anew has said when its own began.
        return {**next((each for each in before if each is not None), {}), **(run.alerting or {})}

    def require(self, loop: str) -> None:
        """Check that this process serves a loop.

        Raises:
            NotFound: it does not (UNKNOWN_LOOP).
        """
        if loop not in self._loops:
            raise unknown_loop(loop)

    async def watch(self, run_id: str) -> AsyncIterator[Run]:
        """Yield a run as it is and at each change, until nothing follows.

        Raises:
            NotFound: there is no such run (UNKNOWN_RUN).
        """
        changes: asyncio.Queue[Run] = asyncio.Queue()
        watchers = self._watchers.setdefault(run_id, set())
        watchers.add(changes)
        try:
            run = self.get(run_id)
            yield run
            while not run.state.is_final:
                run = await changes.get()
                yield run
        finally:
            watchers.discard(changes)
            if not watchers:
                self._watchers.pop(run_id, None)


async def start_run(runs: RunRegistry, announcer: Announcer, loop: str, request_id: str) -> Run:
    """Announce and queue a run; the same request id starts one run.

    The trigger is sent first: should this process die before the run is stored, it comes back from the topic.

    Raises:
        NotFound: this process does not serve the loop (UNKNOWN_LOOP).
        Unavailable: Kafka does not take the trigger; nothing was started.
    """
    runs.require(loop)
    trigger = Trigger(manual_trigger_id(loop, request_id), loop)
    known = runs.find(trigger)
    if known is not None:
        return known
    attributes = {"gyre.loop": loop, "gyre.trigger_id": trigger.trigger_id}
    with model_tracer().span("training trigger", attributes=attributes):
        await announcer.trigger(trigger)
        return runs.queue(replace(trigger, traceparent=current_traceparent() or ""))
