"""A change of the features at full length: a history to fill the new layout from, while the live one stays fresh."""

import sys
import time

import pytest
from gyre.deployer.v1 import deployer_pb2 as deployer
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.features import Layout
from gyre_core.topics import topic
from gyre_local.testing import eventually
from gyre_runtime.kafka import Producer

from .layout_change import (
    IN_ORDER,
    READY,
    RETIRED,
    LayoutChange,
    assert_compared,
    assert_models_answered,
    assert_parity,
)

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1200)]
HISTORY, VISITORS, ITEMS = 60_000, 6_000, 40
HISTORY_S = 3000.0


async def write_history(mesh) -> None:
    """Clicks of other users over most of the last hour."""
    begin = time.time() - HISTORY_S
    async with Producer(mesh.kafka, source="history", max_queue_records=HISTORY) as producer:
        for number in range(HISTORY):
            user = f"h{number * 7 % VISITORS}"
            click = behavior.Interaction(user_id=user, item_id=f"i{number * 13 % ITEMS}", type="click")
            name = topic(mesh.loop, "behavior.interactions")
            assert producer.enqueue(name, click, key=user, time=begin + number * HISTORY_S / HISTORY)


async def until_promoted(mesh) -> None:
    """Users come until a first model has all of them."""

    async def promoted() -> bool:
        await mesh.visits(20)
        answer = await mesh.deployer.ListRollouts(deployer.ListRolloutsRequest(loop=mesh.loop), timeout=30)
        return any(each.state == deployer.ROLLOUT_STATE_PROMOTED for each in answer.rollouts)

    await eventually(promoted, timeout_s=180, message="a first model is promoted")


async def test_a_change_of_features_under_load_keeps_the_live_layout_fresh(replicated_mesh) -> None:
    """While the new layout fills, an event of the live one is readable within a second (p99); nobody is interrupted."""
    mesh = replicated_mesh
    await write_history(mesh)
    await until_promoted(mesh)
    change = LayoutChange(mesh, Layout.compile(mesh.spec).hash)
    async with mesh.open_load() as load:
        capacity = await load.capacity(5.0)
        async with change.watched(), load.at(capacity / 2):
            await change.edit()
            await mesh.restart(IN_ORDER[0])
            await change.until_counted(change.before)
            started = change.freshness(change.before)
            await mesh.restart(*IN_ORDER[1:])
            await change.until(change.after, READY, timeout_s=300)
            fresh = change.freshness(change.before).since(started)
            shown = await change.status()
            assert change.before in shown
            assert change.after in shown
            version = await change.until_live(timeout_s=240)
            await change.until(change.before, RETIRED, timeout_s=240)
    slowest = sorted(each.seconds for each in load.answers)[len(load.answers) * 99 // 100]
    within = fresh.within_1s / max(fresh.count, 1.0)
    sys.stdout.write(
        f"{capacity / 2:.0f} visits/s, {len(load.answers):,} answers, p99 {slowest:.3f} s; while the new layout filled"
        f" {within:.1%} of {fresh.count:.0f} observations were readable within 1 s\n"
    )
    await assert_models_answered(change, load)
    await assert_compared(change, version)
    await assert_parity(change)
    assert any(0 < share < 1 for share in change.shares), change.shares
    assert fresh.count > 100
    assert fresh.within_1s >= 0.99 * fresh.count, fresh
