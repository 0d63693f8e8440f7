"""What the real Triton says of its models, and the file system of an artefact, as the deployer reads them."""

import asyncio
import os
import shutil
import signal

import pytest
from gyre_core.models import MODEL_FILE, triton_model
from gyre_deployer.adapters.artifacts import ArtifactFolders
from gyre_deployer.adapters.triton import TritonControl
from gyre_deployer.domain.loading import ModelState
from gyre_deployer.domain.rollouts import Candidate
from gyre_deployer.ports import REPOSITORY_UNAVAILABLE, CandidateRefused
from gyre_local.testing import eventually
from gyre_runtime import Unavailable

from .conftest import WEIGHTS, weighted_sum

pytestmark = [pytest.mark.adapter, pytest.mark.timeout(120)]


async def test_triton_says_what_became_of_each_model(place, triton) -> None:
    """Loaded, refused, not asked for; a repository that it cannot read is no model's fault."""
    names = {what: triton_model(place.loop, what) for what in ("good", "lost", "broken", "new", "absent")}
    repository = triton.repository
    for what in ("good", "lost", "broken", "new"):
        folder = repository / names[what] / "1"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"no graph" if what == "broken" else weighted_sum(WEIGHTS))
        (folder.parent / "config.pbtxt").write_text(
            f'name: "{names[what]}" backend: "onnxruntime" max_batch_size: 8'
            ' input [{ name: "features" data_type: TYPE_FP32 dims: [3] }]'
            ' output [{ name: "scores" data_type: TYPE_FP32 dims: [1] }]'
        )
    async with TritonControl(place.settings(), timeout_s=30) as control:
        for what in ("good", "lost"):
            await control.load(names[what])
        with pytest.raises(CandidateRefused):
            await control.load(names["broken"])
        with pytest.raises(Unavailable) as unseen:
            await control.load(names["absent"])
        shutil.rmtree(repository / names["lost"])
        found = await control.models()
        assert {what: found.get(name) for what, name in names.items()} == {
            "good": ModelState.READY,
            "lost": None,
            "broken": ModelState.UNAVAILABLE,
            "new": ModelState.UNASKED,
            "absent": None,
        }
        away = repository.rename(repository.with_name("away"))
        try:
            with pytest.raises(Unavailable) as unread:
                await control.load(names["new"])
            assert await control.is_ready(names["good"])
        finally:
            away.rename(repository)
        assert [each.value.reason for each in (unseen, unread)] == [REPOSITORY_UNAVAILABLE] * 2
        os.kill(triton.process.pid, signal.SIGKILL)
        await asyncio.to_thread(triton.process.stop)
        await asyncio.to_thread(triton.process.start)

        async def has_forgotten() -> bool:
            try:
                return (await control.models())[names["good"]] == ModelState.UNASKED
            except Unavailable:  # not connected again yet
                return False

        await eventually(has_forgotten, timeout_s=30, message="Triton is back and has forgotten what it held")


async def test_an_artefact_that_the_file_system_does_not_give_is_no_candidates_fault(tmp_path) -> None:
    """A file that is not there refuses the candidate; one that cannot be read at the moment is waited for."""
    candidate = Candidate("shop", "v1", "run", "layout", ("a",), str(tmp_path), "0" * 64)
    with pytest.raises(CandidateRefused):
        await ArtifactFolders().read(candidate)
    graph = tmp_path / MODEL_FILE
    graph.symlink_to(graph)  # stands for a share that is stale, or whose server is away
    with pytest.raises(Unavailable) as away:
        await ArtifactFolders().read(candidate)
    assert away.value.reason == REPOSITORY_UNAVAILABLE
