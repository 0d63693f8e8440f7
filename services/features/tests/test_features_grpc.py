"""The read side over gRPC on the real Redis and Kafka: exact values, and every status and reason."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from gyre.events.v1 import features_pb2 as events_pb2
from gyre.features.v1 import data_quality_pb2 as quality_pb
from gyre.features.v1 import features_pb2 as pb
from gyre.features.v1.data_quality_pb2_grpc import DataQualityServiceStub
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre_core.features import Layout, Replay, RequestContext, item_hash
from gyre_core.spec import LoopSpec, parse_loop
from gyre_core.topics import declared, topic
from gyre_features.online.store import OnlineStore
from gyre_features.processes.serve import serve
from gyre_features.serving.servicer import now_of
from gyre_features.settings import FeaturesSettings
from gyre_features.stream.loop_stream import LoopStream, feature_event
from gyre_local.process import Process
from gyre_local.testing import eventually
from gyre_local.timeouts import scaled
from gyre_privacy.detection import Finding, Scanner
from gyre_runtime import Channel, GyreError, Invalid, Lifespan, NotFound, Precondition, ServiceSettings, channel
from gyre_runtime.kafka import Producer, create_topics
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
BEGIN = 1_370_000_000.0
BARE = """
version: 1
loop: {loop}
events: {{interactions: {{click: {{}}}}}}
features:
  - {{name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [1d]}}
  - {{name: place, kind: position}}
  - {{name: device, kind: context, field: device, values: [phone, desktop]}}
privacy: {{fields: {{labels.note: {{action: redact}}}}}}
"""


@dataclass(frozen=True)
class Service:
    """The running service."""

    channel: Channel
    lifespan: Lifespan

    @property
    def features(self) -> FeaturesServiceStub:
        """Its feature methods."""
        return FeaturesServiceStub(self.channel)

    @property
    def quality(self) -> DataQualityServiceStub:
        """Its reports."""
        return DataQualityServiceStub(self.channel)


Start = Callable[[str], Awaitable[Service]]


@pytest.fixture
def bare(loop_name: str) -> str:
    """A second loop, on the wall clock, without history, popularity or categories."""
    return f"b{loop_name[-8:]}"


@pytest.fixture
async def start(loop_file: Path, bare: str, kafka: str, tmp_path: Path, privacy_key_file: Path) -> AsyncIterator[Start]:
    """Start the service, in the test's own process, on a Redis."""
    (tmp_path / "bare.yaml").write_text(BARE.format(loop=bare))
    opened: list[Lifespan] = []

    async def on(redis_url: str, **changes: Any) -> Service:
        settings = FeaturesSettings(
            loops=(loop_file, tmp_path / "bare.yaml"),
            kafka=kafka,
            redis=redis_url,
            artifacts=tmp_path / "artifacts",
            drain_s=1,
            features_forget_wait_s=0,
            privacy_key_file=privacy_key_file,
        ).model_copy(update=changes)
        lifespan = await Lifespan(drain_s=1).__aenter__()
        opened.append(lifespan)
        running = await serve(lifespan, settings)
        await lifespan.health.start()
        async with asyncio.timeout(scaled(30)):
            await running.caught_up.wait()
        address = running.server.address
        return Service(await lifespan.enter(channel(address, ServiceSettings(), name="features")), lifespan)

    yield on
    for lifespan in opened:
        await lifespan.__aexit__(None, None, None)


@pytest.fixture
async def service(start: Start, redis_url: str) -> Service:
    """The service on the session's Redis, once it knows the layouts."""
    running = await start(redis_url)
    await running.lifespan.health.wait_serving(scaled(30))
    return running


@pytest.fixture
async def store(redis: Redis, spec: LoopSpec, layout: Layout) -> OnlineStore:
    """The store that the service reads."""
    return OnlineStore(redis, spec, layout)


@pytest.fixture
async def filled(store: OnlineStore, history: Any) -> list[Any]:
    """The events that the store holds: 12 films, 200 ratings."""

    async def ignore(*_: object) -> None:
        pass

    events = [*history.catalogue(), *history.ratings(200)]
    stream = LoopStream(store, on_batch=ignore)
    await stream.apply(events[:12])
    await stream.apply(events[12:])
    return events


def _at(seconds: float = 3600.0) -> Timestamp:
    moment = Timestamp()
    moment.FromSeconds(int(BEGIN + seconds))
    return moment


def _ask(spec: LoopSpec, *, user: str = "u1", items: int = 12, **changes: Any) -> pb.GetFeaturesRequest:
    given: dict[str, Any] = {"loop": spec.loop, "user_id": user, "request_time": _at(), **changes}
    return pb.GetFeaturesRequest(item_ids=[f"i{number}" for number in range(items)], **given)


def _matrix(answer: pb.GetFeaturesResponse) -> Any:
    block = answer.features
    return np.frombuffer(block.values, "<f4").reshape(block.rows, block.columns)


async def _refused(call: Awaitable[Any]) -> tuple[type[GyreError], str]:
    with pytest.raises(GyreError) as caught:
        await call
    return type(caught.value), caught.value.reason


async def test_labels_are_searched_off_the_event_loop(
    service: Service, bare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label in which something personal may stand is searched in a thread, so that no other request waits for it."""
    searched_by: set[int] = set()
    scan = Scanner.scan

    def noted(self: Scanner, text: str) -> list[Finding]:
        searched_by.add(threading.get_ident())
        return scan(self, text)

    monkeypatch.setattr(Scanner, "scan", noted)
    request = pb.GetFeaturesRequest(loop=bare, user_id="u", item_ids=["a"], labels={"note": "ask jane@example.com"})
    await service.features.GetFeatures(request, timeout=30)
    assert searched_by
    assert threading.get_ident() not in searched_by


async def test_features_from_kafka_are_those_of_a_replay(  # noqa: PLR0917 - fixtures
    service: Service, kafka: str, spec: LoopSpec, layout: Layout, history: Any, produce: Any, start_process: Any
) -> None:
    """What the stream wrote from Kafka and `GetFeatures` reads equals the offline replay to 1e-5, for every user."""
    await create_topics(kafka, declared(spec))
    events = [*history.catalogue(), *history.ratings(400)]
    await produce(events)
    start_process("stream")
    replay = Replay(layout)
    replay.apply(map(feature_event, events))

    async def equal() -> bool:
        for user in (f"u{number}" for number in range(9)):
            found = _matrix(await service.features.GetFeatures(_ask(spec, user=user), timeout=30))
            expected, _ = replay.matrix(user, [f"i{number}" for number in range(12)], RequestContext(BEGIN + 3600))
            assert found == pytest.approx(expected, rel=1e-5)
        return True

    await eventually(equal, timeout_s=60, message="the served features are the replayed ones")


async def test_a_thousand_candidates_are_one_round_trip(
    service: Service, redis: Redis, spec: LoopSpec, layout: Layout, filled: Any
) -> None:
    """A user and 1,000 candidates cost Redis exactly one MGET, and each candidate has its row."""
    await service.lifespan.health.wait_serving(10)
    before = await redis.info("commandstats")
    answer = await service.features.GetFeatures(_ask(spec, items=1000), timeout=30)
    after = await redis.info("commandstats")
    calls = {
        name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"]
        for name in after
        if name not in ("cmdstat_info", "cmdstat_ping")
    }
    assert {name: count for name, count in calls.items() if count} == {"cmdstat_mget": 1}
    assert _matrix(answer).shape == (1000, len(layout.columns))
    assert answer.features.layout == layout.hash


async def test_a_read_says_how_old_it_is(service: Service, spec: LoopSpec, filled: Any) -> None:
    """Batch numbers of user and items and the age of the user's newest event; -1 for what is unknown."""
    known = await service.features.GetFeatures(_ask(spec), timeout=30)
    assert set(known.item_batches) == {2}
    assert (known.user_batch, known.global_batch) == (2, -1)  # this loop keeps nothing loop-wide
    newest = max(each.time for each in filled if getattr(each.message, "user_id", "") == "u1")
    assert known.feature_age_s == pytest.approx(BEGIN + 3600 - newest)
    unknown = await service.features.GetFeatures(_ask(spec, user="nobody", items=13), timeout=30)
    assert (unknown.user_batch, unknown.feature_age_s, unknown.item_batches[12]) == (-1, -1, -1)


async def test_another_layout_is_refused(service: Service, spec: LoopSpec, layout: Layout, filled: Any) -> None:
    """A layout that is not maintained gives LAYOUT_NOT_SERVED; the current one by its hash is served."""
    outcome = await _refused(service.features.GetFeatures(_ask(spec, layout="0123"), timeout=30))
    assert outcome == (Precondition, "LAYOUT_NOT_SERVED")
    assert (await service.features.GetFeatures(_ask(spec, layout=layout.hash), timeout=30)).features.rows == 12


async def test_the_replay_clock_needs_the_requests_time(service: Service, spec: LoopSpec, bare: str) -> None:
    """On the replay clock a request without a time gives TIME_REQUIRED with the field; on the wall clock it may."""
    with pytest.raises(Invalid) as caught:
        await service.features.GetFeatures(_ask(spec, request_time=None), timeout=30)
    assert caught.value.reason == "TIME_REQUIRED"
    assert caught.value.violations[0].field == "request_time"
    request = pb.GetFeaturesRequest(loop=bare, user_id="u", item_ids=["i"])
    assert (await service.features.GetFeatures(request, timeout=30)).features.rows == 1
    popular = service.features.ListPopular(pb.ListPopularRequest(loop=spec.loop, limit=1), timeout=30)
    assert await _refused(popular) == (Invalid, "TIME_REQUIRED")


async def test_a_read_has_the_requests_labels_and_order(service: Service, bare: str) -> None:
    """Candidates that nobody knows have their place in the request; its label has its column, and no other counts."""
    request = pb.GetFeaturesRequest(loop=bare, user_id="u", item_ids=["b", "a"], labels={"device": "desktop", "x": "y"})
    answer = await service.features.GetFeatures(request, timeout=30)
    rows = np.frombuffer(answer.features.values, "<f4").reshape(answer.features.rows, answer.features.columns)
    assert rows.tolist() == [[0, 0, 0, 1], [0, 1, 0, 1]]
    request.labels["device"] = "d" * 129
    with pytest.raises(Invalid) as caught:
        await service.features.GetFeatures(request, timeout=30)
    assert caught.value.violations[0].field == "labels[device]"


def test_a_callers_now_counts_where_the_clocks_agree(bare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the wall clock a request's time is the read's now within five seconds of the server's, and ignored beyond."""
    spec, wall = parse_loop(BARE.format(loop=bare), source="test"), 1_700_000_000.0
    monkeypatch.setattr("gyre_features.serving.servicer.time", SimpleNamespace(time=lambda: wall))
    for off_s, now in ((-4.9, wall - 4.9), (5.0, wall + 5.0), (-5.1, wall), (5.1, wall), (60.0, wall)):
        asked = Timestamp()
        asked.FromMicroseconds(round((wall + off_s) * 1e6))
        assert now_of(spec, asked) == pytest.approx(now, abs=1e-6)


async def test_an_unknown_loop_is_not_found(service: Service) -> None:
    """Every method answers NOT_FOUND with UNKNOWN_LOOP for a loop that is not served."""
    stub, name = service.features, "elsewhere"
    calls = (
        stub.GetFeatures(pb.GetFeaturesRequest(loop=name, user_id="u", item_ids=["i"]), timeout=30),
        stub.GetHistory(pb.GetHistoryRequest(loop=name, user_id="u"), timeout=30),
        stub.DescribeFeatures(pb.DescribeFeaturesRequest(loop=name), timeout=30),
        stub.ListPopular(pb.ListPopularRequest(loop=name, limit=1), timeout=30),
        stub.DeleteEntity(pb.DeleteEntityRequest(loop=name, kind=pb.ENTITY_KIND_USER, id="u"), timeout=30),
        service.quality.GetReport(quality_pb.GetReportRequest(loop=name), timeout=30),
    )
    for call in calls:
        assert await _refused(call) == (NotFound, "UNKNOWN_LOOP")


async def test_broken_field_rules_are_invalid(service: Service, spec: LoopSpec) -> None:
    """What the protos forbid gives INVALID_FIELD and names the field."""
    stub, name = service.features, spec.loop
    calls = {
        "item_ids": stub.GetFeatures(_ask(spec, items=0), timeout=30),
        "item_ids ": stub.GetFeatures(_ask(spec, items=1001), timeout=30),
        "user_id": stub.GetHistory(pb.GetHistoryRequest(loop=name), timeout=30),
        "loop": stub.DescribeFeatures(pb.DescribeFeaturesRequest(), timeout=30),
        "limit": stub.ListPopular(pb.ListPopularRequest(loop=name, limit=1001), timeout=30),
        "kind": stub.DeleteEntity(pb.DeleteEntityRequest(loop=name, id="u"), timeout=30),
        "windows": service.quality.GetReport(quality_pb.GetReportRequest(loop=name, windows=1001), timeout=30),
    }
    for field, call in calls.items():
        with pytest.raises(Invalid) as caught:
            await call
        assert caught.value.reason == "INVALID_FIELD"
        assert caught.value.violations[0].field == field.strip()


async def test_a_history_is_newest_first(service: Service, spec: LoopSpec, bare: str, filled: Any) -> None:
    """The last interactions by item hash and time; nothing for an unknown user, or a loop that keeps no history."""
    stub = service.features
    own = [each for each in filled if getattr(each.message, "user_id", "") == "u1"][-5:]
    found = (await stub.GetHistory(pb.GetHistoryRequest(loop=spec.loop, user_id="u1"), timeout=30)).entries
    assert [(each.item_hash, each.event_time.ToSeconds()) for each in found] == [
        (item_hash(each.message.item_id), each.time) for each in reversed(own)
    ]
    for loop, user in ((spec.loop, "nobody"), (bare, "u1")):
        assert not (await stub.GetHistory(pb.GetHistoryRequest(loop=loop, user_id=user), timeout=30)).entries


async def test_a_history_has_the_events_own_times(
    service: Service, spec: LoopSpec, store: OnlineStore, history: Any, filled: Any
) -> None:
    """To the microsecond, also where float32 or a truncation would give another: .999999 stays .999999."""
    micros = [999_999, 1, 500_000, 123_457]
    rating = history.rating(8, 1)
    rating.user_id = "exact"
    events = [
        history.event("behavior.interactions", rating, len(filled) + number, time=BEGIN + number + each / 1e6)
        for number, each in enumerate(micros)
    ]

    async def ignore(*_: object) -> None:
        pass

    await LoopStream(store, on_batch=ignore).apply(events)
    request = pb.GetHistoryRequest(loop=spec.loop, user_id="exact")
    answer = await service.features.GetHistory(request, timeout=30)
    found = [each.event_time.ToMicroseconds() for each in answer.entries]
    assert found == [round(BEGIN + number) * 1_000_000 + each for number, each in enumerate(micros)][::-1]


async def test_the_columns_are_described_in_order(service: Service, spec: LoopSpec, layout: Layout) -> None:
    """Layout hash, and name, feature, kind and scope of each column."""
    answer = await service.features.DescribeFeatures(pb.DescribeFeaturesRequest(loop=spec.loop), timeout=30)
    assert answer.layout == layout.hash
    assert [each.name for each in answer.columns] == list(layout.columns)
    first = answer.columns[0]
    assert (first.name, first.feature, first.kind, first.scope) == ("popular_1d", "popular", "decayed_count", "item")


async def test_popular_items_come_with_their_decayed_counts(service: Service, spec: LoopSpec, filled: Any) -> None:
    """The most popular first, counts decayed to the request's time, and only of a category where one is named."""
    stub = service.features

    def expected(category: int | None) -> dict[str, float]:
        counts: dict[str, float] = {}
        for event in filled[12:]:
            item, age_s = event.message.item_id, BEGIN + 3600 - event.time
            if category is None or int(item[1:]) % 3 == category:
                counts[item] = counts.get(item, 0.0) + 2 ** (-age_s / (7 * 86400))
        return counts

    for name, category in (("", None), ("drama", 1)):
        request = pb.ListPopularRequest(loop=spec.loop, limit=12, category=name, request_time=_at())
        answer = await stub.ListPopular(request, timeout=30)
        found = dict(zip(answer.item_ids, answer.counts, strict=True))
        assert found == pytest.approx(expected(category), rel=1e-5)
        assert list(answer.counts) == sorted(answer.counts, reverse=True)


async def test_popular_items_for_a_user_hold_favourites(service: Service, store: OnlineStore, history: Any) -> None:
    """Half of the list is what everybody likes, the rest comes from the categories that the user likes."""

    async def ignore(*_: object) -> None:
        pass

    stream, events = LoopStream(store, on_batch=ignore), history.catalogue(12)
    pairs = [(9, item) for item in (0, 3, 6, 9) for _ in range(9)] + [(1, 1)] * 3 + [(1, 4)] * 2 + [(1, 7)]
    ratings = [history.event("behavior.interactions", history.rating(*each), at) for at, each in enumerate(pairs)]
    await stream.apply([*events, *ratings])
    request = pb.ListPopularRequest(loop=store.spec.loop, limit=4, user_id="u1", request_time=_at())
    answer = await service.features.ListPopular(request, timeout=30)
    assert len(answer.item_ids) == 4
    assert sum(int(item[1:]) % 3 == 0 for item in answer.item_ids) == 2
    assert [item for item in answer.item_ids if int(item[1:]) % 3 == 1] == ["i1", "i4"]


async def test_popularity_refuses_what_it_does_not_know(service: Service, spec: LoopSpec, bare: str) -> None:
    """An undeclared category gives UNKNOWN_CATEGORY, a loop without a count to go by NO_POPULARITY."""
    stub = service.features
    request = pb.ListPopularRequest(loop=spec.loop, limit=5, category="opera", request_time=_at())
    assert await _refused(stub.ListPopular(request, timeout=30)) == (Invalid, "UNKNOWN_CATEGORY")
    outcome = await _refused(stub.ListPopular(pb.ListPopularRequest(loop=bare, limit=5), timeout=30))
    assert outcome == (Precondition, "NO_POPULARITY")


async def test_a_deleted_entity_is_forgotten(service: Service, spec: LoopSpec, filled: Any) -> None:
    """After the deletion reads know nothing of a user, nor of an item, which is no longer popular either."""
    stub = service.features

    async def delete(kind: Any, id_: str) -> int:
        request = pb.DeleteEntityRequest(loop=spec.loop, kind=kind, id=id_)
        return (await stub.DeleteEntity(request, timeout=30)).deleted_keys

    assert await delete(pb.ENTITY_KIND_USER, "u1") == 1
    assert await delete(pb.ENTITY_KIND_ITEM, "i1") == 1
    assert await delete(pb.ENTITY_KIND_ITEM, "i1") == 0
    answer = await stub.GetFeatures(_ask(spec), timeout=30)
    assert (answer.user_batch, answer.item_batches[1], answer.item_batches[2]) == (-1, -1, 2)
    popular = await stub.ListPopular(pb.ListPopularRequest(loop=spec.loop, limit=50, request_time=_at()), timeout=30)
    assert len(popular.item_ids) == 11
    assert "i1" not in popular.item_ids
    request = pb.DeleteEntityRequest(loop=spec.loop, kind=9, id="x")  # type: ignore[arg-type]
    assert await _refused(stub.DeleteEntity(request, timeout=30)) == (Invalid, "UNKNOWN_KIND")


async def test_nobody_is_forgotten_without_a_key(start: Start, redis_url: str, spec: LoopSpec) -> None:
    """A tombstone is a hash under a key: where there is none the answer names the setting."""
    service = await start(redis_url, privacy_key_file=None)
    request = pb.DeleteEntityRequest(loop=spec.loop, kind=pb.ENTITY_KIND_USER, id="u1")
    with pytest.raises(Precondition, match="GYRE_PRIVACY_KEY_FILE is not set") as refused:
        await service.features.DeleteEntity(request, timeout=30)
    assert refused.value.reason == "PRIVACY_KEY_MISSING"


async def test_redis_away_and_back(start: Start, own_redis: Process, spec: LoopSpec) -> None:
    """Without Redis every read gives STORE_UNAVAILABLE and the process is not SERVING; back, it serves again."""
    service = await start(f"redis://127.0.0.1:{own_redis.recipe.ports['server']}/0")
    health, stub = service.lifespan.health, service.features
    await health.wait_serving(20)
    await stub.GetFeatures(_ask(spec), timeout=30)
    own_redis.stop()
    for call in (
        stub.GetFeatures(_ask(spec), timeout=30),
        stub.GetHistory(pb.GetHistoryRequest(loop=spec.loop, user_id="u"), timeout=30),
        stub.ListPopular(pb.ListPopularRequest(loop=spec.loop, limit=1, request_time=_at()), timeout=30),
        stub.DeleteEntity(pb.DeleteEntityRequest(loop=spec.loop, kind=pb.ENTITY_KIND_USER, id="u"), timeout=30),
    ):
        assert (await _refused(call))[1] == "STORE_UNAVAILABLE"
    await eventually(lambda: not health.serving, timeout_s=20, message="health says that Redis is away")
    own_redis.start()
    await health.wait_serving(20)
    await stub.GetFeatures(_ask(spec), timeout=30)


async def test_a_report_holds_the_newest_windows(service: Service, kafka: str, spec: LoopSpec) -> None:
    """Windows that the quality worker told are reported newest first, partitions added up, ten by default."""
    name = topic(spec.loop, "features.quality")
    await create_topics(kafka, declared(spec))
    async with Producer(kafka, source="test") as producer:
        for number in range(12):
            for partition in range(2):
                window = events_pb2.QualityWindow(
                    loop=spec.loop, topic="t", partition=partition, events=number, final=True
                )
                window.topic = topic(spec.loop, "behavior.interactions")
                window.window_start_time.FromSeconds(int(BEGIN) + 60 * number)
                await producer.send(name, window, key=window.topic)

    async def report(windows: int = 0) -> list[tuple[int, int]]:
        request = quality_pb.GetReportRequest(loop=spec.loop, windows=windows)
        found = (await service.quality.GetReport(request, timeout=30)).windows
        return [(each.window_start_time.ToSeconds() - int(BEGIN), each.events) for each in found]

    async def all_there() -> bool:
        return len(await report(100)) == 12 and (await report(1))[0] == (660, 22)

    await eventually(all_there, timeout_s=20, message="every window was taken in")
    assert await report() == [(60 * number, 2 * number) for number in range(11, 1, -1)]
    assert await asyncio.gather(report(2), report(2)) == [[(660, 22), (600, 20)]] * 2
