"""`gyre maintain`: the jobs of every service on this machine, first as a plan."""

import asyncio
import sys
from pathlib import Path

import pytest
from gyre_core.models import triton_model
from gyre_local.testing import eventually

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(300)]


async def gyre(place, tmp_path: Path, *words: str) -> tuple[int, str]:
    """Run the command line; its exit code and output."""
    env = place.environ() | {
        "GYRE_ARTIFACTS": str(tmp_path / "artifacts"),
        "GYRE_STATE_DIR": str(tmp_path / "state"),
        "GYRE_WAREHOUSE": str(tmp_path / "warehouse"),
        "GYRE_MLFLOW": "http://127.0.0.1:9",
        "GYRE_TRAINER_MLFLOW_WAIT_S": "0.1",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from gyre_client.cli import main; main()", *words,
        env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_a_plan_is_printed_before_anything_goes(running, models, place, gateway, tmp_path: Path) -> None:
    """What a killed deployer left in Triton's repository is named by a dry run and then removed; what serves stays."""
    async with running() as deployer:
        await models.register("v1", manifest={"snapshots": {}})
        await deployer.reaches("v1", "PROMOTED", timeout_s=60)
    stray = place.triton.repository / triton_model(place.loop, "stray") / "1"
    stray.mkdir(parents=True)
    (stray / "model.onnx").write_bytes(b"left behind")
    for command in (("maintain", "--dry-run"), ("maintain",)):
        code, printed = await gyre(place, tmp_path, *command)
        assert code == 0, printed
        assert all(f"{service}:" in printed for service in ("trainer", "features", "deployer", "monitor"))
        assert f"{place.loop}: 1 of 2 versions to remove from Triton's repository: stray" in printed
        assert f"{place.loop}: 0 models to remove" in printed
        assert f"{place.loop}: rows to delete: none" in printed
        assert place.holds("stray") == (command[-1] == "--dry-run")
    assert place.holds("v1")
    assert await place.is_served("v1")
    assert (tmp_path / "artifacts" / place.loop / "v1").exists()


async def test_an_empty_log_removes_nothing(place, models, tmp_path: Path) -> None:
    """Where the rollout log is empty, as in a Kafka made anew, no installed version goes, and the job says so."""
    stray = place.triton.repository / triton_model(place.loop, "serves") / "1"
    stray.mkdir(parents=True)
    (stray / "model.onnx").write_bytes(b"perhaps it serves")
    for options in (("maintain", "--dry-run"), ("maintain",)):
        code, printed = await gyre(place, tmp_path, *options)
        assert place.holds("serves")
        assert f"{place.loop}: nothing is removed: 1 versions, and an empty rollout log" in printed
        assert code == 1


async def test_what_gateways_ask_under_an_older_log_stays(running, models, place, gateway, tmp_path: Path) -> None:
    """A version that the log never knew is kept as long as a gateway counts requests of it, and removed afterwards."""
    async with running() as deployer:
        await models.register("v1", manifest={"snapshots": {}})
        await deployer.reaches("v1", "PROMOTED", timeout_s=60)
        await eventually(lambda: gateway.view.arms, message="the gateway follows the log")
    gateway.counts["serves"] = [7] + [0] * (len(gateway.counts["v1"]) - 1)
    stray = place.triton.repository / triton_model(place.loop, "serves") / "1"
    stray.mkdir(parents=True)
    (stray / "model.onnx").write_bytes(b"it serves")
    code, printed = await gyre(place, tmp_path, "maintain")
    assert place.holds("serves"), printed
    assert f"{place.loop}: 1 versions stay of which the rollout log knows nothing" in printed
    assert code == 1
    del gateway.counts["serves"]

    async def is_removed() -> bool:
        await gyre(place, tmp_path, "maintain")
        return not place.holds("serves")

    await eventually(is_removed, timeout_s=60, message="it is removed")
    assert place.holds("v1")
