"""Carries runs out, one after the other: snapshot, job, candidate. A run that was under way at a crash begins anew."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from gyre_core.spec import LoopSpec
from gyre_runtime import Unavailable, instrument, model_tracer
from gyre_runtime.errors import origin_of
from gyre_runtime.retrying import retry_transient
from gyre_runtime.series import VersionSeries

from gyre_trainer.domain import (
    JobFailed,
    Quality,
    Run,
    RunState,
    Task,
    TrainedCandidate,
    TrainingRefused,
    quality_alerts,
)
from gyre_trainer.handlers import RunRegistry
from gyre_trainer.ports import Announcer, Incumbents, Job, MaintainedLayouts, Warehouse

_LOG = logging.getLogger(__name__)
_RETRY_S = 2.0
_STEP_OF = {
    RunState.SNAPSHOT: "snapshot",
    RunState.GATE: "gate",
    RunState.TRAINING: "train",
    RunState.EVALUATING: "evaluate",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Runner:
    """Carries out the runs of some loops.

    Attributes:
        runs: where they are queued and kept.
        loops: their specs, by name.
        warehouse: what they read.
        layouts: that the mesh maintains.
        job: what does the work.
        incumbents: the models to compare with.
        announcer: tells the mesh.
        series: the metric series of each loop's versions.
    """

    runs: RunRegistry
    loops: Mapping[str, LoopSpec]
    warehouse: Warehouse
    layouts: MaintainedLayouts
    job: Job
    incumbents: Incumbents
    announcer: Announcer
    series: dict[str, VersionSeries] = field(default_factory=dict)

    async def run_forever(self) -> None:
        """Carry out what is due, until cancelled; a cancelled run is due again."""
        while True:
            try:
                run = self.runs.next_due()
                if run is not None:
                    await self.carry_out(run)
                    continue
            except Unavailable as error:  # the runs cannot be kept at the moment: whichever is due is so again
                _LOG.warning("training waits", extra={"problem": str(error)})
                await asyncio.sleep(_RETRY_S)
                continue
            await self.runs.until_queued()

    async def carry_out(self, run: Run) -> Run:
        """Carry out one run; answer how it ended."""
        attributes = {"gyre.loop": run.loop, "gyre.run_id": run.run_id, "gyre.trigger_id": run.trigger_id}
        links = [run.traceparent] if run.traceparent else []
        with model_tracer().span("training run", links=links, attributes=attributes) as span:
            ended = await self._ended(run)
            await self.warehouse.release(ended)
            span.set_attributes({"gyre.state": ended.state.value, "gyre.version": ended.version})
        facts = {"run_id": ended.run_id, "loop": ended.loop, "state": ended.state.value, "version": ended.version}
        _LOG.info("training run ended", extra={**facts, "reason": ended.reason, **ended.measurements})
        return ended

    async def _ended(self, run: Run) -> Run:
        underway = _Underway(self.runs, run)
        try:
            with underway:
                candidate = await self._worked(underway)
                underway.step("register")
                await retry_transient(
                    lambda: self.announcer.candidate(underway.run, candidate), what="the candidate is announced"
                )
        except TrainingRefused as refusal:
            return underway.end(RunState.REFUSED, reason=str(refusal), measurements=refusal.quality.measurements)
        except JobFailed as failure:
            return underway.end(RunState.FAILED, reason=str(failure))
        except Exception as error:  # noqa: BLE001 - the next run must not suffer: logged and kept with the run
            _LOG.exception("a training run broke", extra={"run_id": run.run_id})
            return underway.end(RunState.FAILED, reason=f"{type(error).__name__} at {origin_of(error)}")
        return self._registered(underway, candidate)

    async def _worked(self, underway: _Underway) -> TrainedCandidate:
        try:
            candidate = await self._train(underway)
        except TrainingRefused as refusal:
            await self._tell_quality(underway, refusal.quality)
            raise
        await self._tell_quality(underway, candidate.quality)
        return candidate

    async def _tell_quality(self, underway: _Underway, quality: Quality) -> None:
        """Say what the gate found: metrics, and an alert for each check that fails or passes again."""
        run = underway.run
        if not quality.checks:
            return
        for check in quality.checks:
            if check.value is not None:
                instrument("gyre_quality_check_value").set(check.value, loop=run.loop, check=check.name)
        for check in quality.failed:
            instrument("gyre_quality_failures_total").add(loop=run.loop, check=check.name, action=check.action)
        for rows, count in quality.quarantined.items():
            instrument("gyre_quality_quarantined_total").add(count, loop=run.loop, rows=rows)
        said, firing = quality_alerts(run.loop, self.runs.alerting(run), quality, now=time.time())
        for alert in said:
            await retry_transient(partial(self.announcer.alert, alert), what="an alert is sent")
        underway.run = self.runs.change(run, alerting=firing)

    async def _train(self, underway: _Underway) -> TrainedCandidate:
        underway.progress(RunState.SNAPSHOT, 0.0)
        run, spec = underway.run, self.loops[underway.run.loop]
        # A model of a layout that nobody maintains could never be served.
        if refusal := await retry_transient(lambda: self.layouts.refusal(spec), what="the layouts are read"):
            raise TrainingRefused(refusal)
        pins = run.pins
        if pins is None:
            pins = await retry_transient(lambda: self.warehouse.pin(run.loop), what="snapshots are pinned")
            underway.run = run = self.runs.change(run.pinned(pins))
        await self.warehouse.hold(run)
        incumbent = await self._incumbent(underway)
        run = underway.run
        task = Task(
            run_id=run.run_id,
            trigger_id=run.trigger_id,
            version=run.version,
            spec=spec.model_dump_json(),
            snapshots=pins.snapshots,
            now=pins.now,
            incumbent=str(incumbent or ""),
        )
        return await self.job.run(task, underway.progress)

    async def _incumbent(self, underway: _Underway) -> Path | None:
        """The live model's folder, which stays until the run is over, whatever is promoted meanwhile."""
        loop = underway.run.loop
        folder = await self.incumbents.folder(loop)
        while True:
            underway.run = self.runs.change(underway.run, incumbent=folder.name if folder else "")
            # What was live after it was kept with the run, whoever removes old models knows of.
            live = await self.incumbents.folder(loop)
            if live == folder:
                return folder
            folder = live

    def _registered(self, underway: _Underway, candidate: TrainedCandidate) -> Run:
        run = underway.run
        self.series.setdefault(run.loop, VersionSeries(run.loop)).note_used([run.version])
        instrument("gyre_trainer_ndcg").set(
            candidate.measurements.get("ndcg_at_10", 0.0), loop=run.loop, version=run.version
        )
        return underway.end(
            RunState.REGISTERED, measurements=dict(candidate.measurements), mlflow_run_id=candidate.mlflow_run_id
        )


class _Underway:
    """A run and the span of its present step, a context manager that ends the span."""

    def __init__(self, runs: RunRegistry, run: Run) -> None:
        self.run = run
        self._runs = runs
        self._span = ExitStack()
        self._step = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._span.__exit__(kind, error, trace)

    def step(self, name: str) -> None:
        """End the span of the step before and begin that of this one."""
        if name != self._step:
            self._span.close()
            self._step = name
            attributes = {"gyre.loop": self.run.loop, "gyre.run_id": self.run.run_id}
            self._span.enter_context(model_tracer().span(name, attributes=attributes))

    def progress(self, state: RunState, progress: float) -> None:
        """Keep how far the run is."""
        self.step(_STEP_OF[state])
        self.run = self._runs.change(self.run, state, progress=progress)

    def end(self, state: RunState, **changes: object) -> Run:
        """Keep how the run ended."""
        return self._runs.change(self.run, state, progress=1.0, **changes)
