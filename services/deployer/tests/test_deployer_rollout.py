"""Whole rollouts on the real Kafka and Triton, with gateways that report: the way up, and the way back."""

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer
from gyre.deployer.v1.deployer_pb2 import ROLLOUT_STATE_PROMOTED as PROMOTED
from gyre.deployer.v1.deployer_pb2 import ROLLOUT_STATE_ROLLED_BACK as ROLLED_BACK
from gyre.deployer.v1.deployer_pb2 import StartRolloutRequest
from gyre.events.v1.models_pb2 import CandidateRegistered, RolloutEventKind
from gyre_core.topics import dead_letter_topic, topic
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_runtime.tracing import format_traceparent
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = pytest.mark.adapter


def kinds(events) -> list[str]:
    """The kinds of changes, without their prefix."""
    return [RolloutEventKind.Name(each.kind).removeprefix("ROLLOUT_EVENT_KIND_") for each in events]


async def test_the_first_model_takes_all_traffic_after_its_warm_up(start, models, place) -> None:
    """Without a live model a candidate is validated, loaded, warmed and promoted at once, also without any gateway."""
    await models.register("v1")
    deployer = await start()
    rollout = await deployer.reaches("v1", "PROMOTED")
    assert kinds(rollout.events) == ["STARTED", "VALIDATED", "LOADED", "WARMED", "PROMOTED"]
    assert await place.is_served("v1")
    view = (await deployer.listed()).view
    (arm,) = view.arms
    assert (arm.name, arm.version, arm.share, arm.run_id) == ("live", "v1", 1.0, "run-v1")
    assert (arm.layout, list(arm.columns)) == (models.layout.hash, list(models.layout.columns))
    assert (view.epoch, view.last_good_version, list(view.loaded_versions)) == (5, "", ["v1"])


async def test_a_second_model_goes_10_50_100(start, models, place, gateway) -> None:
    """A candidate beside a live model takes each step's share, is promoted, and the one before the last is unloaded."""
    deployer = await start()
    for version in ("v1", "v2", "v3"):
        await models.register(version)
        rollout = await deployer.reaches(version, "PROMOTED")
        assert rollout.events[0].candidate.run_id == f"run-{version}"
    assert kinds(rollout.events) == ["STARTED", "VALIDATED", "LOADED", "WARMED", *["SHIFTED"] * 3, "PROMOTED"]
    assert [each.share for each in rollout.events] == [0, 0, 0, 0, 0.1, 0.5, 1.0, 1.0]
    assert [each.step for each in rollout.events if each.share][:3] == [0, 1, 2]
    await eventually(lambda: place.is_logged("UNLOADED", "v1"), message="v1 is unloaded")
    assert not await place.is_served("v1")
    await eventually(lambda: not place.holds("v1"), message="v1 has left the repository")
    view = (await deployer.listed()).view
    assert (view.arms[0].version, view.last_good_version) == ("v3", "v2")
    assert list(view.loaded_versions) == ["v2", "v3"]
    assert [each.epoch for each in await place.log()] == list(range(1, view.epoch + 1))


async def live_with_candidate(start, models, **changes):
    """A deployer with v1 live, and v2 registered."""
    deployer = await start()
    await models.register("v1")
    await deployer.reaches("v1", "PROMOTED")
    await models.register("v2", **changes)
    return deployer


BAD = [
    ({"golden_weights": (1.0, 2.0, 3.001)}, "golden request"),
    ({"sha256": "0" * 64}, "sha256"),
    ({"columns": ["elsewhere"]}, "elsewhere"),
    ({"artifact_uri": "/nowhere/at/all"}, "No such file"),
    ({"artifact_uri": "s3://bucket/model"}, "file URI"),
    ({"weights": (1.0, 2.0)}, "2 columns"),
    ({"weights": (float("nan"), 1.0, 1.0)}, "finite"),
    ({"manifest": {"loop": "another"}}, "loop = 'another'"),
    ({"graph": b"this is no graph"}, "Triton cannot load"),
]


async def test_bad_candidates_are_refused_and_live_untouched(start, models, place, gateway) -> None:
    """What is wrong is named, nothing of the candidate stays on Triton or in its repository, and v1 serves on."""
    deployer = await start()
    await models.register("v1")
    await deployer.reaches("v1", "PROMOTED")
    for number, (changes, reason) in enumerate(BAD):
        version = f"bad-{number}"
        await models.register(version, **changes)
        rollout = await deployer.reaches(version, "REFUSED")
        assert reason in rollout.reason
        assert rollout.share == 0
        assert not await place.is_served(version)
        assert not place.holds(version)
        assert place.leftovers() == []
        view = (await deployer.listed()).view
        assert [(arm.version, arm.share) for arm in view.arms] == [("v1", 1.0)]
        assert list(view.loaded_versions) == ["v1"]
    assert await place.is_served("v1")


async def test_a_candidate_that_breaks_a_guardrail_is_rolled_back(start, models, place, gateway) -> None:
    """Errors or latency give all users back to v1, and v2 leaves Triton once gateways let go."""
    deployer = await start()
    await models.register("v1")
    await deployer.reaches("v1", "PROMOTED")
    for spoil, reason in (("failing", "failed"), ("slow", "took more than 100 ms")):
        getattr(gateway, spoil).add(spoil)
        await models.register(spoil)
        rollout = await deployer.reaches(spoil, "ROLLED_BACK")
        assert reason in rollout.reason
        assert [each.share for each in rollout.events if each.share] == [0.1]
        view = (await deployer.listed()).view
        assert [(arm.version, arm.share) for arm in view.arms] == [("v1", 1.0)]
        await eventually(lambda spoil=spoil: place.is_logged("UNLOADED", spoil), message=f"{spoil} is unloaded")
        await eventually(lambda spoil=spoil: not place.holds(spoil), message=f"{spoil} has left the repository")
        assert not await place.is_served(spoil)
    assert await place.is_served("v1")


async def says(deployer, version: str, words: str) -> bool:
    """Whether the rollout of a version gives these words as its reason."""
    rollout = await deployer.rollout(version)
    return rollout is not None and words in rollout.reason


async def test_both_models_failing_is_not_the_candidates_fault(start, models, gateway) -> None:
    """While live fails as the candidate does nothing counts, which is told, and the step goes on once both are well."""
    gateway.failing.update({"v1", "v2"})
    deployer = await live_with_candidate(start, models)
    await eventually(lambda: says(deployer, "v2", "intervals spoiled"), message="the rollout says what does not count")
    assert (await deployer.rollout("v2")).share == 0.1
    gateway.failing.clear()
    rollout = await deployer.reaches("v2", "PROMOTED")
    assert "intervals spoiled" in next(each.reason for each in rollout.events if each.share == 0.5)


async def test_a_stall_of_everything_does_not_take_a_candidate_back(start, models, gateway) -> None:
    """A stall in the middle of a canary, in which the gateway opens its circuit, leaves the candidate where it is."""
    deployer = await live_with_candidate(start, models)
    await deployer.reaches("v2", "CANARY")
    gateway.failing.update({"v1", "v2"})
    gateway.tripped.add("v2")

    async def is_seen() -> bool:
        rollout = await deployer.rollout("v2")
        return rollout.state == ROLLED_BACK or ("spoiled" in rollout.reason and "keep requests" in rollout.reason)

    await eventually(is_seen, message="the stall and the circuit are seen")
    rollout = await deployer.rollout("v2")
    assert rollout.share == 0.1, rollout.reason
    gateway.failing.clear()
    gateway.tripped.clear()
    await deployer.reaches("v2", "PROMOTED")


async def test_a_candidate_that_was_rolled_back_may_be_offered_again(start, models, loop, gateway) -> None:
    """StartRollout begins another rollout of it, once for each request id, until one has promoted it."""
    gateway.failing.add("v2")
    deployer = await live_with_candidate(start, models)
    first = await deployer.reaches("v2", "ROLLED_BACK")
    gateway.failing.clear()

    async def offer(request_id: str) -> str:
        request = StartRolloutRequest(loop=loop, version="v2", request_id=request_id)
        return (await deployer.stub.StartRollout(request, timeout=30)).rollout.rollout_id

    again = await offer("once-more")
    assert again != first.rollout_id
    rollout = await deployer.reaches("v2", "PROMOTED")
    assert rollout.rollout_id == again
    assert (await offer("once-more"), await offer("and-again")) == (again, again)
    assert [each.version for each in await deployer.rollouts()] == ["v2", "v2", "v1"]
    assert (await deployer.listed()).view.arms[0].version == "v2"


async def test_unloading_waits_for_a_lagging_gateway(start, models, place, gateway, new_gateway) -> None:
    """A version stays loaded while one live gateway may still ask it, and goes once that gateway has left."""
    deployer = await live_with_candidate(start, models)
    await deployer.reaches("v2", "PROMOTED")
    async with new_gateway(instance="gateway-2", requests=0).reporting() as slow:
        await eventually(lambda: slow.view.last_good_version == "v1", message="the second gateway follows")
        slow.lags = True
        await models.register("v3")
        await deployer.reaches("v3", "PROMOTED")
        unnamed = (await deployer.listed()).view.epoch
        await eventually(lambda: gateway.view.epoch >= unnamed, message="the first gateway acknowledges")
        await models.register("v4", sha256="0" * 64)
        await deployer.reaches("v4", "REFUSED")
        assert not await place.is_logged("UNLOADED", "v1")
        assert await place.is_served("v1")
    await eventually(lambda: place.is_logged("UNLOADED", "v1"), message="the gateway left: v1 is unloaded")
    assert not await place.is_served("v1")


async def test_of_several_waiting_candidates_the_newest_is_rolled_out(start, models, gateway) -> None:
    """What arrives during a rollout waits; then the newest goes, and the older are refused as superseded by it."""
    gateway.requests = 0
    deployer = await live_with_candidate(start, models)
    rollout = await deployer.reaches("v2", "CANARY")
    for version in ("v3", "v4", "v5"):
        await models.register(version)
    gateway.requests = 100
    await deployer.reaches("v5", "PROMOTED")
    for version in ("v3", "v4"):
        assert (await deployer.reaches(version, "REFUSED")).reason == "superseded by v5"
    assert rollout.rollout_id != (await deployer.rollout("v5")).rollout_id
    assert (await deployer.rollout("v2")).state == PROMOTED


async def test_a_version_that_is_announced_again_starts_nothing(start, models, gateway) -> None:
    """A repeated announcement, also after the rollout has ended, is the same candidate."""
    deployer = await start()
    announced = await models.register("v1")
    await deployer.reaches("v1", "PROMOTED")
    await models.announce(announced)
    await models.register("v2")
    await deployer.reaches("v2", "PROMOTED")
    assert [each.version for each in await deployer.rollouts()] == ["v2", "v1"]


async def test_a_candidate_that_is_none_is_dead_lettered(start, models, kafka, loop) -> None:
    """A record that breaks the contract lies in the dead-letter topic with its reason, and the next one is taken."""
    deployer = await start()
    await models.announce(CandidateRegistered(loop=loop, version="Not A Version"))
    await models.register("v1")
    await deployer.reaches("v1", "PROMOTED")
    consumer = AIOKafkaConsumer(
        dead_letter_topic(topic(loop, "models.candidates")), bootstrap_servers=kafka, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        async with asyncio.timeout(scaled(10)):
            letter = await consumer.getone()
    finally:
        await consumer.stop()
    assert dict(letter.headers)["gyre_reason"] == b"INVALID_FIELD"
    assert [each.version for each in await deployer.rollouts()] == ["v1"]


async def test_a_rollout_is_one_trace_and_has_metrics(start, models, gateway, telemetry) -> None:
    """The rollout's span links its registration, every step is its child, requests get its context, and shares show."""
    exporter = InMemorySpanExporter()
    telemetry.tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    deployer = await live_with_candidate(start, models)
    await deployer.reaches("v2", "PROMOTED")
    view = (await deployer.listed()).view
    spans = exporter.get_finished_spans()
    exporter.shutdown()
    run = [span for span in spans if span.name == "training run"][-1]
    (rollout,) = [span for span in spans if span.name == "rollout" and span.attributes["gyre.version"] == "v2"]
    assert [link.context.span_id for link in rollout.links] == [run.context.span_id]
    assert rollout.attributes["gyre.run_id"] == "run-v2"
    assert rollout.attributes["gyre.rollout_id"] == view.rollout_id
    assert view.traceparent == format_traceparent(rollout.context)
    children = [span.name for span in spans if span.parent and span.parent.span_id == rollout.context.span_id]
    steps = ["validate", "load", "warm", "shift", "shift", "shift", "promote"]
    assert [name for name in children if name != "rollout unload"] == [f"rollout {step}" for step in steps]

    def value(name: str, **labels: str) -> float | None:
        found: float | None = telemetry.registry.get_sample_value(name, {"loop": deployer.loop, **labels})
        return found

    assert value("gyre_deployer_share", version="v2", arm="live") == 1.0
    assert value("gyre_deployer_share", version="v2", arm="candidate") == 0.0
    assert value("gyre_deployer_share", version="v1", arm="live") == 0.0
    assert value("gyre_deployer_rollouts_total", state="promoted") == 2
    assert value("gyre_deployer_warmup_seconds_count", version="v2") == 3
