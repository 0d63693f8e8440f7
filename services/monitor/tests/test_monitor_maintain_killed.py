"""The job that prunes the monitor's tables, killed at each of its steps: all of a round goes, or nothing."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from gyre.events.v1 import models_pb2 as models
from gyre_local.killing import KILLED, KillableJob
from gyre_monitor.store.database import Database
from gyre_monitor.store.schema import ARMS, CANDIDATES, IMPRESSIONS, LATENCIES, ROLLOUTS, TRIGGERS
from sqlalchemy import Connection, func, select, text

NUMBER = 10
STEPS = (
    "sqlalchemy.engine.default:DefaultDialect.do_execute",
    "sqlalchemy.engine.default:DefaultDialect.do_commit",
)
Counts = Mapping[str, int]
pytestmark = pytest.mark.timeout(300)


async def _fill(projection, log, make, wall, loop: str) -> None:
    """Forty rollouts, each with a trigger, a candidate and an answer; of the older half no answer is known any more."""
    for number in range(40):
        version, at = f"v{number}", 1000.0 + number
        wall.now = at
        trigger = models.TrainingTrigger(trigger_id=f"t{number}", loop=loop, reason=models.TRIGGER_REASON_MANUAL)
        await projection.apply([log.add("training.triggers", trigger, at=at)])
        candidate = make.candidate(loop, version, trigger_id=f"t{number}")
        await projection.apply([log.add("models.candidates", candidate, at=at)])
        for step, kind in enumerate(("STARTED", "SHIFTED", "ROLLED_BACK")):
            event = make.rollout(loop, f"ro{number}", kind, epoch=3 * number + step + 1, version=version, share=0.1)
            await projection.apply([log.add("models.rollout-events", event, at=at)])
        shown = make.impression(f"r{number}", model_version=version, epoch=3 * number + 2)
        await projection.apply([log.shown(shown, at=at)])


def _counts(connection: Connection) -> Counts:
    """Rows by table."""
    tables = (ARMS, LATENCIES, ROLLOUTS, CANDIDATES, TRIGGERS)
    return {each.name: connection.scalar(select(func.count()).select_from(each)) or 0 for each in tables}


def _dangling(connection: Connection) -> int:
    """Known answers and rollouts whose version no candidate is known of."""
    known = select(CANDIDATES.c.version)
    return sum(
        connection.scalar(select(func.count()).select_from(each).where(each.c.version.not_in(known))) or 0
        for each in (IMPRESSIONS, ROLLOUTS)
    )


async def test_a_job_killed_at_any_step_prunes_all_or_nothing(
    projection, database: Database, log, make, wall, tmp_path: Path
) -> None:
    """After a kill before the commit every row is there, after one behind it none that is to go; nothing dangles."""
    loop = log.loop
    await _fill(projection, log, make, wall, loop)
    await database.write(lambda connection: connection.execute(text("delete from impressions where id <= 20")))
    (tmp_path / "gyre.yaml").write_text(
        f"version: 1\nloop: {loop}\nevents: {{interactions: {{click: {{}}}}}}\nretention: {{rollouts: {NUMBER}}}\n"
        "features: [{name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [1d]}]\n"
    )
    env = {"GYRE_LOOPS": str(tmp_path / "gyre.yaml"), "GYRE_MONITOR_DATABASE": f"sqlite:///{tmp_path / 'monitor.db'}"}
    maintain = KillableJob("gyre_monitor.__main__:main", ("gyre_monitor", "maintain"), env, STEPS)
    before = await database.read(_counts)
    seen: list[Counts] = []
    kill_at = 0
    while True:
        kill_at += 1
        ended = maintain.run(kill_at=kill_at)
        seen.append(await database.read(_counts))
        assert await database.read(_dangling) == 0, kill_at
        assert await database.read(lambda connection: connection.scalar(text("pragma integrity_check"))) == "ok"
        if ended != KILLED:
            assert ended == 0
            break
    after = seen[-1]
    assert all(each in (before, after) for each in seen)
    assert seen.count(before) > 10
    assert after["rollouts"] < before["rollouts"]
    assert maintain.run() == 0
    assert await database.read(_counts) == after
