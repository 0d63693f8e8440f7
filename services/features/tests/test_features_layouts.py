"""Layouts side by side, through Kafka and gRPC: a changed gyre.yaml takes no layout away that a model names."""

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as events_pb2
from gyre.events.v1 import models_pb2 as models
from gyre.features.v1.features_pb2_grpc import FeaturesServiceStub
from gyre_core.features import Layout
from gyre_core.keys import pattern as store_keys
from gyre_core.layouts import LayoutState
from gyre_core.spec import LoopSpec, parse_loop
from gyre_features.online.store import OnlineStore
from gyre_features.settings import FeaturesSettings
from gyre_features.stream.loop_stream import LoopStream
from gyre_local.process import Process
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_runtime import GyreError, ServiceSettings, channel
from gyre_runtime.events import Event
from gyre_warehouse.tables import ITEMS as CATALOG_ITEMS
from gyre_warehouse.tables import ensure_table, open_catalog
from redis.asyncio import Redis

from .layouts_loop import (
    AFTER_S,
    DAY,
    ITEMS,
    NOT_SERVING,
    SERVING,
    Loop,
    later,
    moment_of,
    opened,
    replayed,
    until_served,
)

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(400)]


@pytest.fixture
async def loop(loop_file: Path, kafka: str, start_process: Callable[..., Any]) -> AsyncIterator[Loop]:
    """The loop, with stream, archive and serve running."""
    async with opened(loop_file, kafka, start_process) as made:
        yield made


async def fill(store: OnlineStore, events: Sequence[Event]) -> None:
    """Apply events to a store, as the stream of its layout does."""

    async def ignore(*_: object) -> None:
        pass

    stream = LoopStream(store, on_batch=ignore)
    for message in (behavior.ItemChanged, behavior.Interaction):
        await stream.apply([each for each in events if isinstance(each.message, message)])


async def until_checked(loop: Loop, mismatches: dict[str, int], *, at: float) -> None:
    """Log two reads of each layout, one of them with so many wrong numbers, and wait until a check says so of each."""
    columns = {}
    for layout, count in mismatches.items():
        await loop.show(f"right-{layout}", at, layout)
        await loop.show(f"checked-{layout}", at, layout, wrong=0.01 * count)
        columns[layout] = (await loop.matrix(at, layout)).shape[1]

    async def checked() -> bool:
        code, found = await loop.parity()
        said = [
            f"parity: 2 impressions, {2 * len(ITEMS) * columns[layout]} values, {count} mismatches, 0 unknown,"
            f" 0 pending\n  layout {layout}:" in found
            for layout, count in mismatches.items()
        ]
        return all(said) and code == (1 if any(mismatches.values()) else 0)

    await eventually(checked, timeout_s=60, message="each layout is checked with its own definition")


async def test_a_changed_file_takes_no_layout_away_that_a_model_names(loop: Loop, history: Any, produce: Any) -> None:
    """Beside a new layout that of the live model is served and kept up, until no model names it any more."""
    events = [*history.catalogue(), *history.ratings(300)]
    await produce(events)
    old = loop.spec
    await until_served(loop, old, events)
    before, after = Layout.compile(old).hash, Layout.compile(loop.edit(DAY)).hash
    await loop.name_models(("v1", models.MODEL_ROLE_LIVE, before))
    await loop.restart("stream")
    await loop.restart("serve")
    await until_served(loop, loop.spec, events)
    await until_served(loop, old, events)
    more = later(history, after_s=400, seed=5, count=200)
    await produce(more)
    await until_served(loop, loop.spec, [*events, *more])
    await until_served(loop, old, [*events, *more])
    states = {key: (each.state, list(each.wanted_by)) for key, each in (await loop.layouts()).items()}
    ready = events_pb2.LAYOUT_STATE_READY
    assert states == {before: (ready, ["live v1"]), after: (ready, ["gyre.yaml"])}
    await until_checked(loop, {before: 1, after: 0}, at=moment_of(more) - AFTER_S + 60)
    await loop.name_models(("v2", models.MODEL_ROLE_LIVE, after), epoch=2)
    await loop.until(before, events_pb2.LAYOUT_STATE_RETIRED)
    with pytest.raises(GyreError, match="is not maintained any more") as refused:
        await loop.matrix(moment_of(events), before)
    assert refused.value.reason == "LAYOUT_NOT_SERVED"


async def test_a_retired_layout_leaves_the_store_and_is_filled_again(
    loop: Loop, history: Any, produce: Any, redis: Redis
) -> None:
    """No key of a retired layout stays, identities included; wanted again, it counts all events and no repeat."""
    events = [*history.catalogue(), *history.ratings(200)]
    await produce(events)
    old = loop.spec
    await until_served(loop, old, events)
    before, after = Layout.compile(old).hash, Layout.compile(loop.edit(DAY)).hash
    await loop.name_models(("v1", models.MODEL_ROLE_LIVE, before))
    await loop.restart("stream")
    await loop.restart("serve")
    await until_served(loop, loop.spec, events)

    async def kinds_of(layout: str) -> set[str]:
        keys = [key.decode() async for key in redis.scan_iter(store_keys(old.loop), count=1000)]
        return {key.partition(f":{layout}:")[2].partition(":")[0] for key in keys if f"}}:{layout}:" in key}

    kept = {"item", "user", "fence", "duplicates", "batch"}
    assert kept <= await kinds_of(before)
    await loop.name_models(("v2", models.MODEL_ROLE_LIVE, after), epoch=2)
    await loop.until(before, events_pb2.LAYOUT_STATE_RETIRED)

    async def deleted() -> bool:
        return not await kinds_of(before)

    await eventually(deleted, timeout_s=60, message=f"the keys of the retired layout {before} are deleted")
    assert kept <= await kinds_of(after)
    named = [("v2", models.MODEL_ROLE_LIVE, after), ("v1", models.MODEL_ROLE_LAST_GOOD, before)]
    await loop.name_models(*named, epoch=3)
    more = later(history, after_s=400, seed=5)
    await produce([events[-1], *more, more[0]])
    for spec in (old, loop.spec):
        await until_served(loop, spec, [*events, *more])
    await loop.until(before, events_pb2.LAYOUT_STATE_READY)


async def test_a_fifth_layout_is_refused_while_four_answer(loop: Loop, history: Any, produce: Any) -> None:
    """The command line and the process name the layout that must retire first; the others are read and kept up."""
    events = [*history.catalogue(), *history.ratings(100)]
    await produce(events)
    specs, roles = [loop.spec], ("LIVE", "LAST_GOOD", "CANDIDATE", "WAITING")
    await until_served(loop, loop.spec, events)
    for count in (2, 3, 4):
        specs.append(loop.edit((f"half_lives: [{count - 1}d, 7d]", f"half_lives: [{count}d, 7d]")))
        named = [Layout.compile(spec).hash for spec in specs]
        models_ = [
            (f"v{place}", models.ModelRole.Value(f"MODEL_ROLE_{roles[place]}"), named[place]) for place in range(count)
        ]
        await loop.name_models(*models_, epoch=count)
        assert await loop.validate() == (0, loop_is_valid(loop))
        await loop.restart("stream")
        await loop.until(named[-1], events_pb2.LAYOUT_STATE_READY)
    loop.edit(("half_lives: [4d, 7d]", "half_lives: [5d, 7d]"))
    refusal = (
        f"layout {Layout.compile(loop.spec).hash} of gyre.yaml would be the 5th that is maintained, and at most 4 are:"
        f" layout {named[3]} must retire first, which is wanted by waiting v3"
    )
    code, output = await loop.validate()
    assert code == 1
    assert f"TOO_MANY_LAYOUTS: {refusal}" in output
    process = await loop.restart("stream")
    await loop.until_health("stream", NOT_SERVING, f"features-stream/{loop.spec.loop}")
    await eventually(lambda: refusal in process.log.read_text(), timeout_s=30, message="the log says why")
    await loop.restart("serve")
    more = later(history, after_s=300, seed=9)
    await produce(more)
    for spec in specs:
        await until_served(loop, spec, [*events, *more])
    assert set(await loop.layouts()) == set(named)
    # The waiting model's rollout is over: its layout may go, and the fifth takes its place.
    await loop.name_models(*models_[:3], epoch=9)
    await until_served(loop, loop.spec, [*events, *more])
    await loop.until_health("stream", SERVING, f"features-stream/{loop.spec.loop}")


def loop_is_valid(loop: Loop) -> str:
    """What the command line says of a file that the mesh can maintain."""
    layout = Layout.compile(loop.spec)
    facts = f"{len(loop.spec.features)} features in {len(layout.columns)} columns, layout {layout.hash}"
    return f"{loop.path}: loop {loop.spec.loop} is valid: {facts}\n"


async def test_a_kind_that_changes_in_place_is_refused(loop: Loop, history: Any, produce: Any) -> None:
    """The refusal says that a new field goes beside the old one, the live layout goes on, and that way is taken."""
    events = [*history.catalogue(), *history.ratings(100)]
    await produce(events)
    old = loop.spec
    await until_served(loop, old, events)
    live = Layout.compile(old).hash
    await loop.name_models(("v1", models.MODEL_ROLE_LIVE, live))
    loop.edit(
        ("price: {kind: number}", "price: {kind: category, values: [low, high]}"),
        ("half_lives: [1d,", "half_lives: [2d,"),
    )
    code, output = await loop.validate()
    assert code == 1
    assert "KIND_CHANGED: items.fields.price: kind is category in gyre.yaml, and number in layout" in output
    assert "Add a new field beside it, and remove items.fields.price once no model reads it" in output
    refusing = [await loop.restart(name) for name in ("stream", "archive")]
    for name in ("stream", "archive"):
        await loop.until_health(name, NOT_SERVING, f"features-{name}/{old.loop}")

    def said() -> bool:
        why = "kind is category in gyre.yaml, and number in layout"
        return all(why in process.log.read_text() for process in refusing)

    await eventually(said, timeout_s=30, message="the logs say why")
    more = later(history, after_s=300, seed=9)
    await produce(more)
    await until_served(loop, old, [*events, *more])
    loop.edit(
        (
            "price: {kind: category, values: [low, high]}",
            "price: {kind: number}\n    class: {kind: category, values: [low, high]}",
        )
    )
    assert await loop.validate() == (0, loop_is_valid(loop))
    for name in ("stream", "archive", "serve"):
        await loop.restart(name)
    await until_served(loop, loop.spec, [*events, *more])
    await until_served(loop, old, [*events, *more])
    tables = open_catalog(FeaturesSettings(warehouse=str(loop.path.parent / "warehouse")))

    def archived() -> bool:
        return ensure_table(tables, old.loop, CATALOG_ITEMS).scan().to_arrow().num_rows == 12

    await eventually(archived, timeout_s=60, message="the archive has every change of the catalogue")


async def test_a_feature_that_is_added_or_removed_changes_no_answer_of_the_layout_before(
    loop: Loop, history: Any, produce: Any
) -> None:
    """Of both layouts, each with columns that the other lacks, what is served is what a replay gives."""
    events = [*history.catalogue(), *history.ratings(200)]
    await produce(events)
    old = loop.spec
    await until_served(loop, old, events)
    before = Layout.compile(old).hash
    seen = "  - {name: seen, kind: history, scope: user, events: [rating], length: 5}\n"
    many = "  - {name: many, kind: decayed_count, scope: user, events: [rating], half_lives: [3d]}\n"
    after = Layout.compile(loop.edit((seen, many))).hash
    await loop.name_models(("v1", models.MODEL_ROLE_LIVE, before))
    for name in ("stream", "serve"):
        await loop.restart(name)
    more = later(history, after_s=400, seed=5)
    await produce(more)
    await until_served(loop, loop.spec, [*events, *more])
    await until_served(loop, old, [*events, *more])
    await until_checked(loop, {before: 0, after: 0}, at=moment_of(more) - AFTER_S + 60)


async def test_a_start_waits_to_know_the_layouts(
    loop: Loop, history: Any, produce: Any, kafka_process: Process
) -> None:
    """While Kafka, which holds the layouts, is away, a reader is not ready, and no longer than it is told to wait."""
    events = [*history.catalogue(), *history.ratings(50)]
    await produce(events)
    old = loop.spec
    await until_served(loop, old, events)
    before = Layout.compile(old).hash
    await loop.name_models(("v1", models.MODEL_ROLE_LIVE, before))
    loop.edit(DAY)
    kafka_process.stop()
    try:
        process = await loop.restart("serve", GYRE_FEATURES_LAYOUTS_WAIT_S="600")
        await loop.until_health("serve", SERVING, "liveness")
        down = f'"dependency": "layouts of {old.loop}"'
        await eventually(lambda: down in process.log.read_text(), timeout_s=30, message="it is said what is missing")
        assert await loop.health("serve") == NOT_SERVING
        await loop.restart("serve", GYRE_FEATURES_LAYOUTS_WAIT_S="0.5")
        await loop.until_health("serve", SERVING)
        with pytest.raises(GyreError, match="is not known"):
            await loop.matrix(moment_of(events), before)
        await loop.restart("serve", GYRE_FEATURES_LAYOUTS_WAIT_S="600")
    finally:
        kafka_process.start()
    await loop.until_health("serve", SERVING)
    assert np.allclose(await loop.matrix(moment_of(events), before), replayed(old, events), rtol=1e-5)


async def test_a_start_without_kafka_answers_no_defaults(
    loop_file: Path, spec: LoopSpec, history: Any, redis: Redis, start_process: Callable[..., Any]
) -> None:
    """A layout whose values are in a later store, since it was retired before, is refused until Kafka says which."""
    (port,) = free_ports(1)
    nowhere, events = "127.0.0.1:1", [*history.catalogue(), *history.ratings(50)]
    async with channel(f"127.0.0.1:{port}", ServiceSettings(), name="features") as connected:
        loop = Loop(loop_file, nowhere, start_process, FeaturesServiceStub(connected), {"serve": port}, {})
        await loop.restart("serve", GYRE_KAFKA=nowhere, GYRE_FEATURES_LAYOUTS_WAIT_S="0.5")
        await loop.until_health("serve", SERVING)
        await fill(OnlineStore(redis, spec, Layout.compile(spec), generation=1), events)
        for layout in ("", Layout.compile(spec).hash):
            with pytest.raises(GyreError, match="is read from Kafka first") as refused:
                await loop.matrix(moment_of(events), layout)
            assert refused.value.reason == "LAYOUT_NOT_SERVED"
        await fill(OnlineStore(redis, spec, Layout.compile(spec)), events)
        assert np.allclose(await loop.matrix(moment_of(events)), replayed(spec, events), rtol=1e-5)
        await loop.stop("serve")


async def test_a_definition_that_nothing_needs_any_more_is_removed(loop: Loop, history: Any, produce: Any) -> None:
    """A layout whose values have all expired since its retirement leaves the topic; one that a model names stays."""
    events = [*history.catalogue(), *history.ratings(50)]
    await produce(events)
    await until_served(loop, loop.spec, events)
    newest = Layout.compile(loop.spec)
    await loop.stop("stream")  # which would remove the second one before a model names it
    retired = {"400d": 400.0, "named": 400.0, "300d": 300.0}
    hashes = {}
    for number, (name, days) in enumerate(retired.items(), start=2):
        other = parse_loop(loop.path.read_text().replace("[1d, 7d]", f"[{number}d, 7d]"), source="test")
        hashes[name] = await loop.publish(other, LayoutState.RETIRED, ago_s=days * 86_400)
    await loop.name_models(
        ("v1", models.MODEL_ROLE_LIVE, newest.hash), ("v0", models.MODEL_ROLE_LAST_GOOD, hashes["named"])
    )
    await loop.restart("stream")
    await loop.until(hashes["named"], events_pb2.LAYOUT_STATE_READY)

    async def removed() -> bool:
        return hashes["400d"] not in await loop.layouts()

    await eventually(removed, timeout_s=90, message="the definition is removed")
    states = {key: each.state for key, each in (await loop.layouts()).items()}
    ready, gone = events_pb2.LAYOUT_STATE_READY, events_pb2.LAYOUT_STATE_RETIRED
    assert states == {newest.hash: ready, hashes["named"]: ready, hashes["300d"]: gone}
    with pytest.raises(GyreError, match="is not known"):
        await loop.matrix(moment_of(events), hashes["400d"])
