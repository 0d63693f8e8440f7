"""Five hundred rollouts on the real Kafka and Triton: memory, disk and start stay as they were."""

import asyncio
import json
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from gyre_core.models import MANIFEST_FILE, MODEL_FILE
from gyre_local.testing import eventually
from gyre_trainer.adapters.store import SqliteRuns
from gyre_trainer.domain import Run, RunState

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
ROLLOUTS, WARM_UP = 500, 50
LOOP = """
version: 1
loop: {loop}
events: {{interactions: {{click: {{}}}}}}
features:
  - {{name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [1d, 7d, 30d]}}
rollout: {{steps: [{{share: 1.0}}]}}
serving: {{deadline: 200ms}}
retention: {{models: 1s, min_models: 3, rollouts: 20}}
"""


@pytest.fixture
def loop_file(loop: str, tmp_path: Path) -> Path:
    """A loop whose candidates take all traffic at once, and whose old models go at once."""
    path = tmp_path / "gyre.yaml"
    path.write_text(LOOP.format(loop=loop))
    return path


def resident_bytes(pid: int) -> int:
    """The memory that a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def size_bytes(*folders: Path) -> int:
    """What some folders hold."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


async def maintain(place, tmp_path: Path, *, kill_after_s: float | None = None) -> None:
    """Run the trainer's job, to its end or until it is killed."""
    env = place.environ() | {
        "GYRE_ARTIFACTS": str(tmp_path / "artifacts"),
        "GYRE_STATE_DIR": str(tmp_path / "state"),
        "GYRE_MLFLOW": "http://127.0.0.1:9",
        "GYRE_TRAINER_MLFLOW_WAIT_S": "0.1",
    }
    command = [sys.executable, "-m", "gyre_trainer", "maintain"]
    process = await asyncio.create_subprocess_exec(*command, env=env, stdout=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(kill_after_s):
            assert await process.wait() == 0
    except TimeoutError:
        process.kill()
        await process.wait()


def require_whole(place, tmp_path: Path, view) -> None:
    """What the rollout state names has its artefact and, once it is loaded, its files in Triton's repository.

    A version that is loaded and not named is unloaded at some time, which the state says afterwards.
    """
    for model in view.models:
        folder = tmp_path / "artifacts" / place.loop / model.version
        assert (folder / MODEL_FILE).exists(), model.version
        assert json.loads((folder / MANIFEST_FILE).read_text())["version"] == model.version
    for version in {model.version for model in view.models}.intersection(view.loaded_versions):
        assert place.holds(version), version


def require_consistent(tmp_path: Path, loop: str) -> None:
    """A run that is not marked as removed has its artefact."""
    store = SqliteRuns(tmp_path / "state")
    for run in store.newest(loop, -1):
        assert run.removed_time is not None or (tmp_path / "artifacts" / loop / run.version / MODEL_FILE).exists()
    store.close()


async def best_start_s(running) -> float:
    """The shortest of some starts of a deployer, seconds."""
    times = []
    for _ in range(7):
        began = time.perf_counter()
        async with running():
            times.append(time.perf_counter() - began)
    return min(times)


async def test_memory_disk_and_start_are_flat(spawn, running, models, place, gateway, tmp_path: Path) -> None:
    """After 500 rollouts they are at most 1.2 times those after 50, and what is in use stays, with jobs killed."""
    chance = random.Random(7)
    program = await spawn()
    store = SqliteRuns(tmp_path / "state")
    memory, disk, start = {}, {}, {}
    for number in range(1, ROLLOUTS + 1):
        version = f"v{number:04d}"
        old_s = time.time() - 3600
        run = Run(f"run-{version}", place.loop, f"t-{number}", "", RunState.REGISTERED, old_s, old_s, version=version)
        store.save(run)
        await models.register(version)

        def is_live(version: str = version) -> bool:
            return [arm.version for arm in gateway.view.arms] == [version]

        await eventually(is_live, timeout_s=120, message=f"{version} is live")
        require_whole(place, tmp_path, gateway.view)
        if number % 10 == 0:
            await maintain(place, tmp_path, kill_after_s=chance.uniform(1.0, 6.0))
            require_whole(place, tmp_path, gateway.view)
            require_consistent(tmp_path, place.loop)
        if number in (WARM_UP, ROLLOUTS):
            await maintain(place, tmp_path)
            message = "what is loaded by the state is in the repository"
            await eventually(lambda: all(map(place.holds, gateway.view.loaded_versions)), timeout_s=60, message=message)
            memory[number] = resident_bytes(program.process.pid)
            disk[number] = size_bytes(place.triton.repository, tmp_path / "artifacts")
            program.process.send_signal(signal.SIGTERM)
            assert await program.ended() == 0
            start[number] = await best_start_s(running)
            program = await spawn()
    store.close()
    for name, found in (("memory", memory), ("disk", disk), ("start", start)):
        assert found[ROLLOUTS] <= 1.2 * found[WARM_UP], (name, memory, disk, start)
