"""A database that does not answer for a while, as one whose tables are away: nothing ends, and nothing is left out."""

import asyncio
import sqlite3
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from gyre.events.v1 import models_pb2 as models
from gyre_core.topics import topic
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_monitor import handlers
from gyre_monitor.handlers import Figures
from gyre_runtime import Lifespan
from gyre_runtime.kafka import Producer
from sqlalchemy import text


def rename(file: Path, old: str, new: str) -> None:
    """Take a table away, or bring it back: until then statements fail as they do while a server is away."""
    with closing(sqlite3.connect(file, timeout=30)) as database:
        database.execute(f"alter table {old} rename to {new}")


@pytest.mark.adapter
async def test_the_process_outlives_a_database_that_does_not_answer(
    kafka, loop, make, settings, *, start_process, tail
) -> None:
    """A monitor that starts while its database does not answer lives on, and shows its figures once it does."""
    await tail("training.triggers", models.TrainingTrigger)  # makes the topics
    (port,) = free_ports(1)

    def page() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    def shows() -> bool:
        return any(line.startswith("gyre_monitor_ctr{") and 'version="v1"' in line for line in page().splitlines())

    async with Producer(kafka, source="test") as producer:
        await producer.send(topic(loop, "behavior.impressions"), make.impression("r1"), key="u1", time=make.begin)
    listen = {"GYRE_METRICS_LISTEN": f"127.0.0.1:{port}"}
    first = start_process(**listen)
    await eventually(shows, timeout_s=60, message="the figures of the version are shown")
    first.terminate()
    assert first.wait(30) == 0
    rename(settings.state_dir / "monitor.db", "arms", "arms_away")
    second = start_process(**listen)
    log_file = settings.state_dir.parent / "monitor.log"
    begun = log_file.stat().st_size

    def met() -> bool:
        return second.poll() is not None or "no such table: arms" in log_file.read_text()[begun:]

    await eventually(met, timeout_s=60, message="the monitor meets the outage")
    assert "a background task died" not in log_file.read_text()[begun:]
    rename(settings.state_dir / "monitor.db", "arms_away", "arms")
    await eventually(lambda: second.poll() is not None or shows(), timeout_s=60, message="the figures are shown again")
    assert second.poll() is None


async def test_figures_that_could_not_be_read_are_shown_later(database, projection, log, make, loop, monkeypatch):
    """What changed before and during an outage is shown after it, though nothing changes any more."""
    shown: list[str] = []
    monkeypatch.setattr(handlers, "_SHOW_S", 0.01)
    monkeypatch.setattr(handlers, "_show", lambda _totals, **labels: shown.append(labels["version"]))
    figures = Figures(database, (loop,))
    async with Lifespan(drain_s=1) as lifespan:
        task = lifespan.background("figures", figures.run())
        await projection.apply([log.shown(make.impression("r1"))])
        figures.note(loop, "v1")
        await eventually(lambda: "v1" in shown, timeout_s=20, message="the version is shown")
        await projection.apply([log.shown(make.impression("r2", model_version="v2"))])
        await database.write(lambda connection: connection.execute(text("alter table arms rename to away")))
        figures.note(loop, "v2")
        done, _ = await asyncio.wait([task], timeout=1)
        assert not done, "the outage ended the task"
        await database.write(lambda connection: connection.execute(text("alter table away rename to arms")))
        await eventually(lambda: "v2" in shown, timeout_s=20, message="what changed meanwhile is shown")
        assert not lifespan.failed
