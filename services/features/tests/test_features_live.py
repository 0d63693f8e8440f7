"""Live features beside the live model's training set: sketches that add up and survive, judgements, alerts, reports."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as events
from gyre.events.v1 import models_pb2 as models
from gyre.events.v1 import monitor_pb2 as monitor
from gyre.features.v1 import data_quality_pb2 as pb
from gyre.features.v1.data_quality_pb2_grpc import DataQualityServiceStub
from gyre_core.features import Layout
from gyre_core.models import CLASSIFIER_FILE, MANIFEST_FILE, REFERENCE_FILE
from gyre_core.spec import LoopSpec, parse_loop
from gyre_core.topics import declared, topic
from gyre_features.processes.serve import serve
from gyre_features.quality.judging import follow_up, judge_features, live_quality
from gyre_features.quality.live import LiveReference, PartitionSketch, whole_of
from gyre_features.quality.windowed import Judged
from gyre_features.settings import FeaturesSettings
from gyre_local.testing import eventually
from gyre_quality.bins import fit_bins
from gyre_quality.domain_classifier import calibrate_classifier
from gyre_quality.drift import calibrate, sketch_chunks
from gyre_quality.sketches import Reservoir
from gyre_runtime import Lifespan, ServiceSettings, channel
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Producer, create_topics, read_compacted

Start = Callable[..., Any]
BEGIN = 1_370_000_000.0
VERSION = "20130531-113320-abcdef"
QUALITY = """
quality:
  actions: {drift: block, drift.wasserstein: warn}
  checks: {drift: {min_rows: 200, max_rows: 4000, classifier_rows: 200}}
"""


@pytest.fixture
def judged_spec(loop_file: Path) -> LoopSpec:
    """The test's loop, which judges early."""
    loop_file.write_text(loop_file.read_text() + QUALITY)
    return parse_loop(loop_file.read_text())


def _features(layout: Layout, rows: int, *, seed: int, shift: float = 0.0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(rows, len(layout.columns))) + shift
    return np.asarray(drawn, dtype="<f4")


@pytest.fixture
def artifacts(tmp_path: Path, judged_spec: LoopSpec) -> Path:
    """The artefact folder with the reference of one version, whose features were normal."""
    layout = Layout.compile(judged_spec)
    matrix = _features(layout, 4000, seed=0)[:, list(layout.model_indices)]
    columns = dict(zip(layout.model_columns, matrix.T, strict=True))
    bins = fit_bins(columns)
    empty = Reservoir.empty(200, matrix.shape[1])
    chunks = [empty.add(part, np.arange(400) + 400 * at) for at, part in enumerate(np.array_split(matrix, 10))]
    folder = tmp_path / "artifacts" / judged_spec.loop / VERSION
    folder.mkdir(parents=True)
    (folder / REFERENCE_FILE).write_bytes(calibrate(sketch_chunks(bins, columns, 400)).to_bytes())
    (folder / CLASSIFIER_FILE).write_bytes(calibrate_classifier(bins, chunks).to_bytes())
    manifest = {"version": VERSION, "layout": layout.hash, "data_time": BEGIN, "columns": list(layout.columns)}
    (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, "model_columns": list(layout.model_columns)}))
    return tmp_path / "artifacts"


@pytest.fixture
def reference(artifacts: Path, judged_spec: LoopSpec) -> LiveReference:
    """That reference as the worker reads it."""
    found = LiveReference.read(artifacts / judged_spec.loop / VERSION, judged_spec)
    assert found is not None
    return found


@pytest.mark.parametrize("name", [REFERENCE_FILE, CLASSIFIER_FILE, MANIFEST_FILE])
def test_a_reference_with_a_flipped_bit_ends_nothing(artifacts: Path, judged_spec: LoopSpec, name: str) -> None:
    """It is read, or said to be unreadable, which costs this model its reference; no other error is raised."""
    folder = artifacts / judged_spec.loop / VERSION
    good = (folder / name).read_bytes()
    spots = sorted({*range(min(100, len(good))), *range(max(0, len(good) - 200), len(good))})
    found = set()
    with ThreadPoolExecutor(1) as pool:
        for at in spots:
            (folder / name).write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
            error = pool.submit(LiveReference.read, folder, judged_spec).exception()
            found.add(type(error).__name__)
    assert found == {"NoneType", "ValueError"}


def _impressions(spec: LoopSpec, count: int, *, first: int = 0, shift: float = 0.0) -> list[Event]:
    """Impressions of seven items a second after one another, at the offsets from `first` on."""
    layout = Layout.compile(spec)
    matrix, made = _features(layout, 7 * count, seed=first + 1, shift=shift), []
    for number in range(count):
        ids = [f"i{item}" for item in range(7)]
        request, method = f"r{first + number}", behavior.IMPRESSION_METHOD_RANK
        message = behavior.Impression(request_id=request, user_id=f"u{number}", item_ids=ids, shown=5, method=method)
        block = message.features
        block.layout, block.rows, block.columns = layout.hash, 7, len(layout.columns)
        block.values = matrix[7 * number : 7 * number + 7].tobytes()
        at, name = BEGIN + first + number, topic(spec.loop, "behavior.impressions")
        made.append(Event(request, "test", "", at, message, None, name, 0, first + number, "k", at))
    return made


def _published(reference: LiveReference, shown: list[Event], *, partition: int = 0) -> events.LiveSketch:
    part = PartitionSketch("l", partition, reference, pane_rows=10_000, known=None)
    for event in shown:
        part.count(event.offset, event)
    return part.message()


def _judged(
    spec: LoopSpec, reference: LiveReference, published: list[events.LiveSketch], *, now: float
) -> events.LiveQuality | None:
    return live_quality(spec, judge_features(spec, reference, published), Judged(), now=now)


def test_two_workers_sketches_are_those_of_one(judged_spec: LoopSpec, reference: LiveReference) -> None:
    """Whoever counts which impressions, in whatever order, counts and sample of all together are the same."""
    shown = _impressions(judged_spec, 600)
    alone = whole_of(reference, [_published(reference, shown)])
    parts = [_published(reference, shown[1::2], partition=1), _published(reference, shown[::2])]
    both = whole_of(reference, parts)
    np.testing.assert_array_equal(both.sketch.counts, alone.sketch.counts)
    np.testing.assert_allclose(both.sketch.mean, alone.sketch.mean, rtol=1e-6, atol=1e-6)
    assert both.sketch.rows == alone.sketch.rows == 3000
    assert both.sample is not None
    assert alone.sample is not None
    np.testing.assert_array_equal(both.sample.ids, alone.sample.ids)
    np.testing.assert_array_equal(both.sample.values, alone.sample.values)
    first, second = (_judged(judged_spec, reference, each, now=1.0) for each in (parts, [_published(reference, shown)]))
    assert first is not None
    assert second is not None
    assert [each.passed for each in first.findings] == [each.passed for each in second.findings]


def test_a_successor_goes_on_from_what_was_told(judged_spec: LoopSpec, reference: LiveReference) -> None:
    """Killed after a telling, and the successor that reads on, from before it or not, ends where one alone would."""
    shown = _impressions(judged_spec, 300)
    part = PartitionSketch("l", 0, reference, pane_rows=10_000, known=None)
    for event in shown[:100]:
        part.count(event.offset, event)
    published = part.message()
    part.published(published)
    assert part.resume_offset == 100
    for event in shown[100:150]:
        part.count(event.offset, event)
    assert part.resume_offset == 100
    successor = PartitionSketch("l", 0, reference, pane_rows=10_000, known=published)
    for event in shown[60:]:
        successor.count(event.offset, event)
    ended, alone = successor.message(), _published(reference, shown)
    assert (ended.end_offset, ended.newest_event_time) == (alone.end_offset, alone.newest_event_time)
    whole, expected = whole_of(reference, [ended]), whole_of(reference, [alone])
    np.testing.assert_array_equal(whole.sketch.counts, expected.sketch.counts)
    assert whole.sample is not None
    assert expected.sample is not None
    np.testing.assert_array_equal(whole.sample.ids, expected.sample.ids)


def test_what_is_not_the_models_is_left_out(judged_spec: LoopSpec, reference: LiveReference) -> None:
    """Other layouts, broken blocks, and what the model was trained on count for nothing, but are passed over."""
    layout, old, broken, none = _impressions(judged_spec, 4)
    layout.message.features.layout = "other"
    broken.message.features.values = b"1234"
    none.message.ClearField("features")
    old = old._replace(time=BEGIN - 86_400)
    part = PartitionSketch("l", 0, reference, pane_rows=100, known=None)
    for event in (layout, old, broken, none):
        part.count(event.offset, event)
    part.count(4, None)
    assert not part.changed
    assert part.resume_offset == 5
    assert whole_of(reference, [part.message()]).sketch.rows == 0


def test_old_rows_are_forgotten(judged_spec: LoopSpec, reference: LiveReference) -> None:
    """A full pane makes way for the next, so that what is judged is bounded, and new."""
    part = PartitionSketch("l", 0, reference, pane_rows=2000, known=None)
    for event in [*_impressions(judged_spec, 2000), *_impressions(judged_spec, 800, first=2000, shift=5.0)]:
        part.count(event.offset, event)
    whole = whole_of(reference, [part.message()])
    assert whole.sketch.rows == 4000
    assert whole.sketch.mean.min() > 4.9


def test_alerts_follow_the_actions_of_the_loop(judged_spec: LoopSpec, reference: LiveReference) -> None:
    """Calm data says nothing; drift alerts, critically where the action blocks; it goes on since then, and resolves."""
    calm = _judged(judged_spec, reference, [_published(reference, _impressions(judged_spec, 300))], now=10.0)
    moved = _judged(
        judged_spec, reference, [_published(reference, _impressions(judged_spec, 300, shift=1.0))], now=20.0
    )
    assert calm is not None
    assert moved is not None
    assert follow_up(calm, {}) == []
    alerts = {alert.name: alert for alert in follow_up(moved, {})}
    assert {"live drift.psi", "live drift.wasserstein", "live drift.domain_classifier"} <= alerts.keys()
    assert alerts["live drift.psi"].severity == monitor.ALERT_SEVERITY_CRITICAL
    assert alerts["live drift.wasserstein"].severity == monitor.ALERT_SEVERITY_WARNING
    assert alerts["live drift.psi"].alert_id == f"{judged_spec.loop}-live-drift.psi"
    again = _judged(
        judged_spec, reference, [_published(reference, _impressions(judged_spec, 300, shift=1.0))], now=30.0
    )
    assert again is not None
    assert {alert.start_time.seconds for alert in follow_up(again, moved.failing)} == {20}
    resolved = follow_up(calm, again.failing)
    assert {alert.name for alert in resolved} == alerts.keys()
    assert all(alert.end_time.seconds == 10 for alert in resolved)
    few = [_published(reference, _impressions(judged_spec, 39))]
    assert _judged(judged_spec, reference, few, now=1.0) is None


async def _produce(kafka: str, shown: list[Event]) -> None:
    async with Producer(kafka, source="test") as producer:
        for each in shown:
            key = each.message.user_id
            producer.enqueue(each.topic, each.message, key=key, source=each.source, id=each.id, time=each.time)


@pytest.mark.adapter
async def test_the_worker_judges_alerts_and_resumes(
    kafka: str, redis_url: str, loop_file: Path, judged_spec: LoopSpec, artifacts: Path, start_process: Start
) -> None:
    """Calm impressions pass; a worker killed in between and its successor count each once; drift alerts and is told."""
    spec = judged_spec
    await create_topics(kafka, declared(spec))
    async with Producer(kafka, source="test") as producer:
        view = models.RolloutView(loop=spec.loop, epoch=1)
        view.arms.add(name="live", version=VERSION, share=1.0)
        await producer.send(topic(spec.loop, "models.rollouts"), view, key=spec.loop)
    env = {
        "GYRE_ARTIFACTS": str(artifacts),
        "GYRE_FEATURES_QUALITY_LIVE_S": "0.5",
        "GYRE_FEATURES_QUALITY_IDLE_S": "0.5",
    }
    await _produce(kafka, _impressions(spec, 200))
    victim = start_process("quality", **env)
    types = message_types(events.LiveQuality, monitor.Alert)

    async def judged(rows: int) -> bool:
        published = await read_compacted(kafka, topic(spec.loop, "features.live-quality"), types)
        return spec.loop in published and published[spec.loop].message.rows == rows

    await eventually(lambda: judged(1000), timeout_s=60, message="the calm impressions are judged")
    assert not await read_compacted(kafka, topic(spec.loop, "alerts"), types)
    victim.kill()
    victim.wait()
    start_process("quality", **env)
    await _produce(kafka, _impressions(spec, 200, first=200, shift=2.0))
    await eventually(lambda: judged(2000), timeout_s=60, message="the successor goes on")
    alerts = await read_compacted(kafka, topic(spec.loop, "alerts"), types)
    assert f"{spec.loop}-live-drift.psi" in alerts

    settings = FeaturesSettings(loops=(loop_file,), kafka=kafka, redis=redis_url, drain_s=1)
    async with Lifespan(drain_s=1) as lifespan:
        running = await serve(lifespan, settings)
        await running.caught_up.wait()
        stub = DataQualityServiceStub(
            await lifespan.enter(channel(running.server.address, ServiceSettings(), name="f"))
        )
        report = await stub.GetReport(pb.GetReportRequest(loop=spec.loop), timeout=10)
    assert (report.live.version, report.live.rows, report.live.passed) == (VERSION, 2000, False)
    failed = [check for check in report.live.checks if not check.passed]
    assert all(check.value > check.threshold for check in failed)
    assert {check.action for check in failed} == {pb.QUALITY_ACTION_BLOCK, pb.QUALITY_ACTION_WARN}
