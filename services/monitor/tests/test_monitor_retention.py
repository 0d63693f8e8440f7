"""The tables of the flow of models stay small however many rollouts there were, and no lineage ends in nothing."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from gyre.events.v1 import models_pb2 as models
from gyre_monitor.store import reports
from gyre_monitor.store.database import Database
from gyre_monitor.store.model_retention import ModelRetention
from gyre_monitor.store.schema import ARMS, CANDIDATES, IMPRESSIONS, LATENCIES, ROLLOUTS, TRIGGERS
from sqlalchemy import func, select, text

NUMBER = 10


async def turn(projection, log, make, wall, loop, number: int, *, first_epoch: int = 0) -> None:
    """One trigger, candidate and rollout, with answers of the live version and the candidate under each epoch."""
    version, epoch = f"v{number}", first_epoch + 3 * number
    wall.now = 1000.0 + number
    trigger = models.TrainingTrigger(trigger_id=f"t{number}", loop=loop, reason=models.TRIGGER_REASON_MANUAL)
    await projection.apply([log.add("training.triggers", trigger, at=1000.0 + number)])
    candidate = make.candidate(loop, version, trigger_id=f"t{number}")
    await projection.apply([log.add("models.candidates", candidate, at=1000.0 + number)])
    for step, kind in enumerate(("STARTED", "SHIFTED", "ROLLED_BACK")):
        event = make.rollout(loop, f"ro{number}", kind, epoch=epoch + step + 1, version=version, share=0.1)
        await projection.apply([log.add("models.rollout-events", event, at=1000.0 + number)])
    shown = [make.impression(f"r{number}-{each}", model_version=each, epoch=epoch + 2) for each in ("live", version)]
    await projection.apply([log.shown(each, at=1000.0 + number) for each in shown])


async def counts(database, loop: str) -> dict[str, int]:
    """Rows of a loop, by table."""

    def read(connection) -> dict[str, int]:
        tables = (ARMS, LATENCIES, ROLLOUTS, CANDIDATES, TRIGGERS)
        return {
            table.name: connection.scalar(select(func.count()).select_from(table).where(table.c.loop == loop))
            for table in tables
        }

    return await database.read(read)


async def test_two_hundred_rollouts_leave_no_more_rows_than_120(projection, database, log, make, wall, loop) -> None:
    """Pruned as it goes, no table of models has more rows later than sooner; the newest stay, and the plan is exact."""
    retention = ModelRetention({loop: NUMBER})
    most: dict[int, dict[str, int]] = {}
    for number in range(1, 201):
        await turn(projection, log, make, wall, loop, number)
        if number > NUMBER:
            await database.write(lambda connection: connection.execute(text("delete from impressions where id < "
                "(select max(id) - 10 from impressions)")))  # fmt: skip
        await database.write(retention.prune)
        if number in (120, 200):
            most[number] = await counts(database, loop)
    for table, rows in most[200].items():
        assert rows <= 1.2 * most[120][table] + 2, table
    planned = await database.write(retention.plan)
    before = await counts(database, loop)
    await database.write(retention.prune, always=True)
    after = await counts(database, loop)
    assert {table: before[table] - after[table] for table in after} == {
        table: planned.get((loop, table), 0) for table in after
    }

    def newest(connection) -> list[str]:
        rows = connection.execute(select(ROLLOUTS.c.rollout_id).where(ROLLOUTS.c.loop == loop)).scalars()
        return sorted(rows)

    assert set(await database.read(newest)) >= {f"ro{number}" for number in range(191, 201)}

    def unknown(connection) -> int:
        known = select(CANDIDATES.c.version).where(CANDIDATES.c.loop == loop)
        strange = IMPRESSIONS.c.version.not_in(known) & (IMPRESSIONS.c.version != "live")
        return connection.scalar(select(func.count()).select_from(IMPRESSIONS).where(strange))

    assert await database.read(unknown) == 0


async def promote(projection, log, make, loop, version: str, *, epoch: int, at: float) -> None:
    """A version comes to have all traffic."""
    trigger = models.TrainingTrigger(trigger_id=f"t-{version}", loop=loop, reason=models.TRIGGER_REASON_MANUAL)
    await projection.apply([log.add("training.triggers", trigger, at=at)])
    candidate = make.candidate(loop, version, trigger_id=f"t-{version}")
    await projection.apply([log.add("models.candidates", candidate, at=at)])
    for step, (kind, share) in enumerate((("STARTED", 0), ("SHIFTED", 0.5), ("PROMOTED", 1.0))):
        event = make.rollout(loop, f"ro-{version}", kind, epoch=epoch + step, version=version, share=share)
        await projection.apply([log.add("models.rollout-events", event, at=at)])


@pytest.mark.parametrize("fell_back", [False, True])
async def test_live_and_last_good_keep_their_lineage(projection, database, log, make, loop, fell_back) -> None:
    """However many candidates fail after a promotion, an answer of the live or last good version leads to its run."""
    await promote(projection, log, make, loop, "good", epoch=1, at=1000.0)
    if fell_back:
        # Promoted and fallen back from: the version before it is the last good one.
        await promote(projection, log, make, loop, "bad", epoch=5, at=1000.5)
        fell = make.rollout(loop, "ro-bad", "FELL_BACK", epoch=9, version="bad", share=0.0)
        await projection.apply([log.add("models.rollout-events", fell, at=1000.7)])
    await promote(projection, log, make, loop, "live", epoch=10, at=1001.0)
    for number in range(12):
        epoch, at, version = 20 + 3 * number, 1002.0 + number, f"v{number}"
        candidate = make.candidate(loop, version, trigger_id=f"t{number}")
        await projection.apply([log.add("models.candidates", candidate, at=at)])
        for step, kind in enumerate(("STARTED", "SHIFTED", "ROLLED_BACK")):
            event = make.rollout(loop, f"ro{number}", kind, epoch=epoch + step, version=version, share=0.0)
            await projection.apply([log.add("models.rollout-events", event, at=at)])
    await database.write(ModelRetention({loop: NUMBER}).prune)
    for number, version in enumerate(("live", "good")):
        answer = make.impression(f"r-{version}", model_version=version, epoch=100)
        await projection.apply([log.shown(answer, at=1101.0 + number)])
        chain = await database.read(reports.chain, loop, f"r-{version}", window_s=10.0)
        found = (chain.rollout_id, chain.run_id, chain.trigger_id)
        assert found == (f"ro-{version}", f"run-{version}", f"t-{version}")
    known = await database.read(
        lambda connection: set(connection.scalars(select(ROLLOUTS.c.version).where(ROLLOUTS.c.loop == loop)))
    )
    assert "v0" not in known
    assert "bad" not in known


async def test_a_log_that_was_made_anew_takes_no_lineage_away(projection, database, log, make, loop) -> None:
    """Epochs begin at 1 again: what served before keeps its lineage, and so do the newest rollouts of the new log."""
    await promote(projection, log, make, loop, "good", epoch=5001, at=1000.0)
    await promote(projection, log, make, loop, "live", epoch=5011, at=1001.0)
    for number in range(3 * NUMBER):  # of which the new log names none of the two above
        version, at = f"v{number}", 1002.0 + number
        candidate = make.candidate(loop, version, trigger_id=f"t{number}")
        await projection.apply([log.add("models.candidates", candidate, at=at)])
        for step, kind in enumerate(("STARTED", "SHIFTED", "ROLLED_BACK")):
            epoch = 3 * number + step + (6000 if number < NUMBER else 1)
            event = make.rollout(loop, f"ro{number}", kind, epoch=epoch, version=version, share=0.0)
            await projection.apply([log.add("models.rollout-events", event, at=at)])
        await database.write(ModelRetention({loop: NUMBER}).prune)
    await database.write(lambda connection: ModelRetention({loop: NUMBER}).prune(connection, always=True))
    versions = select(ROLLOUTS.c.version).where(ROLLOUTS.c.loop == loop)
    known = await database.read(lambda connection: set(connection.scalars(versions)))
    assert known == {"good", "live", *(f"v{number}" for number in range(2 * NUMBER, 3 * NUMBER))}
    for number, version in enumerate(("live", "good")):
        answer = make.impression(f"r-{version}", model_version=version, epoch=5100)
        await projection.apply([log.shown(answer, at=1101.0 + number)])
        chain = await database.read(reports.chain, loop, f"r-{version}", window_s=10.0)
        found = (chain.rollout_id, chain.run_id, chain.trigger_id)
        assert found == (f"ro-{version}", f"run-{version}", f"t-{version}")


async def test_counts_go_by_time_where_the_log_was_made_anew(projection, database, log, make, wall, loop) -> None:
    """Epochs begin at 1 again: counts under the old log's go as its rollouts do, and those that answered last are new.

    However high the old epochs were.
    """
    for number in range(1, 3 * NUMBER + 1):
        await turn(projection, log, make, wall, loop, number, first_epoch=5000 if number <= NUMBER else 0)
        await database.write(lambda connection: ModelRetention({loop: NUMBER}).prune(connection, always=True))

    def epochs(connection) -> dict[str, set[int]]:
        return {
            table.name: set(connection.scalars(select(table.c.epoch).where(table.c.loop == loop)))
            for table in (ARMS, LATENCIES)
        }

    expected = {3 * number + 2 for number in range(2 * NUMBER + 1, 3 * NUMBER + 1)}
    assert await database.read(epochs) == {"arms": expected, "latencies": expected}
    newest = await database.read(reports.newest_versions, loop, limit=2)
    assert newest == {"live", f"v{3 * NUMBER}"}


async def test_counts_of_a_release_without_times_are_kept_at_first(
    projection, database, log, make, wall, tmp_path: Path
) -> None:
    """Nobody knows how old they are: none goes at the first prune after the database was brought to this version."""
    loop = log.loop
    for number in range(1, NUMBER + 1):
        await turn(projection, log, make, wall, loop, number)
    before = await counts(database, loop)
    with closing(sqlite3.connect(tmp_path / "monitor.db")) as plain:
        plain.execute("alter table arms drop column change_time")
        plain.execute("update meta set value = '6' where name = 'schema_version'")
        plain.commit()
    async with Database(f"sqlite:///{tmp_path / 'monitor.db'}") as opened:
        await opened.write(lambda connection: ModelRetention({loop: NUMBER}).prune(connection, always=True))
        assert await counts(opened, loop) == before
