"""The loop turns: events, features, a training run by trigger, a rollout, a better answer; and again under load.

The tests of this file run in their order on one mesh, each from where the one before left it.
"""

import asyncio
import os
import signal

import pytest
from aiokafka import AIOKafkaConsumer
from demo_loop.turn import missing_from
from gyre.deployer.v1 import deployer_pb2 as deployer
from gyre.events.v1.behavior_pb2 import Interaction
from gyre.features.v1.features_pb2 import GetFeaturesRequest
from gyre.features.v1.parity_pb2 import CheckParityRequest, ParityReport
from gyre.gateway.v1.gateway_pb2 import RecommendRequest, TrackedEvent, TrackRequest
from gyre.monitor.v1 import monitor_pb2 as monitor
from gyre_core.features import Layout
from gyre_core.topics import dead_letter_topic, topic
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime import NotFound
from gyre_runtime.events import Record
from gyre_runtime.kafka import Producer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PROMOTED = deployer.ROLLOUT_STATE_PROMOTED


async def newest_rollout(mesh) -> deployer.Rollout | None:
    """The newest rollout of the loop."""
    answer = await mesh.deployer.ListRollouts(deployer.ListRolloutsRequest(loop=mesh.loop), timeout=30)
    return answer.rollouts[0] if answer.rollouts else None


async def test_before_the_first_model_answers_are_degraded(mesh) -> None:
    """Without a model a ranking is answered from popularity, and says so."""
    answer = await mesh.rank(1)
    assert len(answer.items) == 40
    assert (answer.provenance.degraded, answer.provenance.degraded_reason) == (True, "NO_MODEL")


async def test_a_click_is_soon_a_feature(mesh) -> None:
    """A tracked click changes the item's count as the next reads see it."""
    column = Layout.compile(mesh.spec).index["popular_1h"]
    click = TrackedEvent(interaction=Interaction(user_id="first", item_id="i7", type="click"))
    await mesh.gateway.Track(TrackRequest(loop=mesh.loop, events=[click]), timeout=30)

    async def counted() -> bool:
        request = GetFeaturesRequest(loop=mesh.loop, user_id="first", item_ids=["i7"])
        answer = await mesh.features.GetFeatures(request, timeout=30)
        values = memoryview(answer.features.values).cast("f")
        return values[column] > 0.9

    await eventually(counted, timeout_s=20, message="the click is in the features")


async def test_the_volume_trigger_leads_to_a_served_model(mesh) -> None:
    """Enough clicks trigger a run, whose candidate is validated, loaded, warmed and takes all traffic."""
    await mesh.visits(330)

    async def served() -> deployer.Rollout | None:
        await mesh.visits(4)
        newest = await newest_rollout(mesh)
        return newest if newest is not None and newest.state == PROMOTED else None

    first = await eventually(served, timeout_s=120, message="a first model is promoted")
    answer = await eventually(lambda: served_by(mesh, first.version), timeout_s=20, message="the gateway follows")
    assert not answer.provenance.degraded
    assert answer.provenance.arm == "live"


async def served_by(mesh, version: str):
    """An answer of that version, or None."""
    answer = await mesh.rank(3)
    return answer if answer.provenance.model_version == version else None


async def test_recommendations_come_from_what_is_popular(mesh) -> None:
    """`Recommend` finds candidates by itself and orders them with the model."""
    request = RecommendRequest(loop=mesh.loop, user_id="u1", limit=5)
    answer = await mesh.gateway.Recommend(request, timeout=30)
    assert len({item.item_id for item in answer.items}) == 5
    assert answer.provenance.model_version


async def test_a_second_model_goes_through_its_canary_under_load_without_a_failure(mesh) -> None:
    """A retrain by trigger goes 10, 50, 100 % while users go on; no request fails, though the deployer is killed."""
    before = await newest_rollout(mesh)
    answers, killed = [], False

    async def promoted() -> deployer.Rollout | None:
        nonlocal killed
        answers.extend(await mesh.visits(20))
        newest = await newest_rollout_or_none(mesh)
        if newest is None or newest.rollout_id == before.rollout_id:
            return None
        if newest.state == deployer.ROLLOUT_STATE_CANARY and not killed:
            os.kill(mesh.pid("deployer"), signal.SIGKILL)
            killed = True
        return newest if newest.state == PROMOTED else None

    second = await eventually(promoted, timeout_s=180, message="the second model is promoted")
    assert killed
    shares = [event.share for event in second.events if event.share > 0]
    assert shares == sorted(shares)
    assert {0.1, 0.5, 1.0} <= set(shares)
    assert len({event.epoch for event in second.events}) == len(second.events)
    versions = {answer.provenance.model_version for answer in answers}
    assert {before.version, second.version} <= versions
    # A busy machine may be late, but no answer ever lacks its version because of the switch.
    reasons = {answer.provenance.degraded_reason for answer in answers}
    assert reasons <= {"", "FEATURES_TIMEOUT", "INFERENCE_TIMEOUT"}


async def newest_rollout_or_none(mesh) -> deployer.Rollout | None:
    """The newest rollout, or None while the deployer is being started again."""
    try:
        return await newest_rollout(mesh)
    except Exception:  # noqa: BLE001 - whatever a dead peer gives: the caller polls
        return None


async def test_an_answer_can_be_traced_to_its_trigger(mesh) -> None:
    """The lineage of a sampled answer has every edge: features, inference, rollout, run, trigger and its events."""
    answer = await mesh.visit(5)
    request = monitor.GetLineageRequest(loop=mesh.loop, request_id=answer.provenance.request_id)

    async def complete() -> monitor.GetLineageResponse | None:
        try:
            found = await mesh.monitor.GetLineage(request, timeout=30)
        except NotFound:
            return None
        services = {span.service for span in found.spans}
        wanted = {"gateway", "features-serve", "features-stream", "inference", "deployer", "trainer", "monitor"}
        assert wanted <= services
        assert found.lineage.interaction_ids
        return found

    found = await eventually(complete, timeout_s=30, message="the trace is complete")
    lineage = found.lineage
    assert lineage.model_version == answer.provenance.model_version
    assert lineage.rollout_id
    assert lineage.run_id
    assert lineage.trigger_id
    assert set(lineage.snapshots) == {"behavior_interactions", "behavior_impressions", "catalog_items"}
    assert_edges(found.spans)
    assert missing_from(found) == []  # the demo asks for the same


def assert_edges(spans) -> None:
    """Parents and links are where the flow says."""
    by_id = {span.span_id: span for span in spans}
    children = {(by_id[span.parent_span_id].service, span.service) for span in spans if span.parent_span_id in by_id}
    assert {("gateway", "features-serve"), ("gateway", "inference"), ("gateway", "features-stream")} <= children
    linked = {
        (span.service, by_id[link.span_id].service) for span in spans for link in span.links if link.span_id in by_id
    }
    assert {("gateway", "deployer"), ("deployer", "trainer"), ("trainer", "monitor"), ("monitor", "gateway")} <= linked
    seen: set[str] = set()
    for span in spans:
        assert span.parent_span_id not in by_id or span.parent_span_id in seen
        seen.add(span.span_id)


async def test_the_loops_status_names_every_stage(mesh) -> None:
    """Every part of the loop says what it is doing, and how long the loop took."""

    async def measured() -> monitor.GetLoopStatusResponse | None:
        found = await mesh.monitor.GetLoopStatus(monitor.GetLoopStatusRequest(loop=mesh.loop), timeout=30)
        return found if found.loop_time_s > 0 else None

    status = await eventually(measured, timeout_s=20, message="the loop time is known")
    assert [stage.stage for stage in status.stages] == [
        "events", "features", "training", "rollout", "serving", "outcomes",
    ]  # fmt: skip
    assert all(stage.count > 0 for stage in status.stages)


async def test_versions_are_compared_by_arm(mesh) -> None:
    """Impressions, clicks and latencies are there for each version that answered."""
    newest = await newest_rollout(mesh)

    async def counted() -> list[monitor.ArmMetrics]:
        found = await mesh.monitor.GetExperiment(monitor.GetExperimentRequest(loop=mesh.loop), timeout=30)
        return [arm for arm in found.arms if arm.version == newest.version and arm.clicked > 0]

    arms = await eventually(counted, timeout_s=20, message="clicks on the new version are counted")
    assert all(0 < arm.ctr <= 1 and arm.ctr_low <= arm.ctr <= arm.ctr_high for arm in arms)
    assert all(0 < arm.latency_p50_s <= arm.latency_p99_s for arm in arms)


async def test_a_poisoned_event_is_dead_lettered_with_its_reason(mesh) -> None:
    """An event that no consumer can read lies in the dead-letter topic, whole, with the reason; the stream goes on."""
    name = topic(mesh.loop, "behavior.interactions")
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"poison"),
        ("ce_source", b"e2e"),
        ("ce_type", b"gyre.events.v1.Interaction"),
        ("ce_time", b"2026-01-01T00:00:00Z"),
        ("content-type", b"application/json"),
    ]
    async with Producer(mesh.kafka, source="e2e") as producer:
        await producer.send_record(name, Record(b"u1", b"{this is not json", headers))
    consumer = AIOKafkaConsumer(
        dead_letter_topic(name), bootstrap_servers=mesh.kafka, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        async with asyncio.timeout(scaled(20)):
            letters = [letter async for letter in _until(consumer, b"poison")]
    finally:
        await consumer.stop()
    assert letters[-1].value == b"{this is not json"
    assert dict(letters[-1].headers)["gyre_reason"] == b"BAD_PAYLOAD"


async def _until(consumer: AIOKafkaConsumer, event_id: bytes):
    async for record in consumer:
        yield record
        if dict(record.headers).get("ce_id") == event_id:
            return


async def test_triton_down_means_a_degraded_answer_that_says_so(mesh) -> None:
    """Without Triton a ranking is answered all the same, marked as degraded; with Triton back by the model again."""
    os.kill(mesh.pid("triton"), signal.SIGKILL)

    async def degraded() -> bool:
        answer = await mesh.rank(2)
        return answer.provenance.degraded and answer.provenance.degraded_reason.startswith("TRITON")

    await eventually(degraded, timeout_s=20, message="an answer says that Triton is away")

    async def restored() -> bool:
        answer = await mesh.rank(2)
        return not answer.provenance.degraded and bool(answer.provenance.model_version)

    await eventually(restored, timeout_s=90, message="Triton is back with the model")


async def test_a_killed_stream_loses_and_doubles_nothing(mesh) -> None:
    """The stream is killed in the middle of many clicks; afterwards every click is counted exactly once."""
    column = Layout.compile(mesh.spec).index["popular_1d"]
    clicks = [
        TrackedEvent(
            event_id=f"counted-{n}", interaction=Interaction(user_id=f"c{n % 50}", item_id="once", type="click")
        )
        for n in range(3000)
    ]
    for start in range(0, len(clicks), 500):
        await mesh.gateway.Track(TrackRequest(loop=mesh.loop, events=clicks[start : start + 500]), timeout=30)
        if start in (500, 1500):
            os.kill(mesh.pid("features-stream"), signal.SIGKILL)

    async def all_counted() -> float:
        request = GetFeaturesRequest(loop=mesh.loop, user_id="c1", item_ids=["once"])
        answer = await mesh.features.GetFeatures(request, timeout=30)
        count = memoryview(answer.features.values).cast("f")[column]
        assert count > 2985, count
        return count

    # A day's half-life takes half a per mille in the minute this may last; a lost batch is many times that.
    assert await eventually(all_counted, timeout_s=60, message="every click is counted") == pytest.approx(3000, abs=5)


async def test_what_was_served_is_what_a_replay_gives(mesh) -> None:
    """Every answer of this file, also around the killed stream, equals a replay of the warehouse up to its read."""
    await mesh.visits(20)
    request = CheckParityRequest(loop=mesh.loop, impressions=10_000)

    async def whole() -> ParityReport | None:
        (found,) = (await mesh.parity.CheckParity(request, timeout=scaled(60))).reports
        return found if found.impressions and not found.pending else None

    report = await eventually(whole, timeout_s=90, message="the warehouse holds what was served")
    assert report.mismatches == 0, report.examples
    assert sum(report.unknown.values()) == 0
    assert report.impressions > 400
    assert report.values > 400 * 40 * len(Layout.compile(mesh.spec).columns)


async def test_every_process_is_healthy_in_the_end(mesh) -> None:
    """Whatever was killed is up again and healthy."""
    for name in mesh.stack.members:
        await eventually(lambda name=name: mesh.is_healthy(name), timeout_s=60, message=f"{name} is healthy")
