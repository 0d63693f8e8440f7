"""The tables of the flow of models stay small however many rollouts there were, and no lineage ends in nothing."""

from gyre.events.v1 import models_pb2 as models
from gyre_monitor.store.model_retention import ModelRetention
from gyre_monitor.store.schema import ARMS, CANDIDATES, IMPRESSIONS, LATENCIES, ROLLOUTS, TRIGGERS
from sqlalchemy import func, select, text

NUMBER = 10


async def turn(projection, log, make, loop, number: int) -> None:
    """One trigger, candidate and rollout, with answers of the live version and the candidate under each epoch."""
    version, epoch = f"v{number}", 3 * number
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


async def test_two_hundred_rollouts_leave_no_more_rows_than_120(projection, database, log, make, loop) -> None:
    """Pruned as it goes, no table of models has more rows later than sooner; the newest stay, and the plan is exact."""
    retention = ModelRetention({loop: NUMBER})
    most: dict[int, dict[str, int]] = {}
    for number in range(1, 201):
        await turn(projection, log, make, loop, number)
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
