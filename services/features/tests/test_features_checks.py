"""The scheduled parity checks, each in a process of its own."""

import multiprocessing
import os
from pathlib import Path

import pytest
from gyre_core.spec import LoopSpec
from gyre_features.parity.checks import Checks
from gyre_features.settings import FeaturesSettings
from gyre_local.testing import eventually
from gyre_runtime import Lifespan


@pytest.mark.adapter
async def test_a_check_that_is_killed_waits_for_the_next_turn(spec: LoopSpec, kafka: str, tmp_path: Path) -> None:
    """A check whose process is killed, as one that takes too much memory is, ends no process but its own."""
    pipe = tmp_path / "later.yaml"  # whoever reads it waits
    os.mkfifo(pipe)
    settings = FeaturesSettings(
        loops=(pipe,), kafka=kafka, warehouse=str(tmp_path / "warehouse"), features_check_interval_s=0.1
    )
    async with Lifespan(drain_s=5) as lifespan:
        lifespan.background("checks", Checks(settings, {spec.loop: spec}).run())
        (first,) = await eventually(multiprocessing.active_children, timeout_s=60, message="a check runs")
        first.kill()

        def goes_on() -> bool:
            return lifespan.failed or any(each.pid != first.pid for each in multiprocessing.active_children())

        await eventually(goes_on, timeout_s=60, message="the next check runs")
        assert not lifespan.failed, "the killed check ended the process"
