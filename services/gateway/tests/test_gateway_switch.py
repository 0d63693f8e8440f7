"""A switch of models under load: nothing fails, and every answer is of the version that its epoch gave."""

import asyncio

import pytest

from .conftest import StartMesh

pytestmark = pytest.mark.adapter
EPOCHS, CALLERS = 150, 8


async def test_no_request_fails_while_the_rollout_state_changes_all_the_time(start: StartMesh) -> None:
    """With a new state every few milliseconds each answer has the version of the epoch that it names."""
    mesh = await start()
    await mesh.roll_out(("live", "v1", 1.0))
    done = asyncio.Event()

    async def switch() -> None:
        for epoch in range(2, EPOCHS):
            await mesh.roll_out(("live", f"v{epoch}", 1.0), wait=False)
            await asyncio.sleep(0.003)
        done.set()

    async def load(caller: int) -> list[tuple[int, str, str]]:
        seen = []
        while not done.is_set():
            provenance = (await mesh.rank(user=f"user-{caller}")).provenance
            seen.append((provenance.epoch, provenance.model_version, provenance.degraded_reason))
        return seen

    switching = asyncio.create_task(switch())
    answers = await asyncio.gather(*(load(caller) for caller in range(CALLERS)))
    await switching
    for each in answers:
        epochs = [epoch for epoch, _, _ in each]
        assert epochs == sorted(epochs)
        assert len(set(epochs)) > 3
        assert {(version, reason) for _, version, reason in each} == {(f"v{epoch}", "") for epoch in epochs}
        assert all(version == f"v{epoch}" for epoch, version, _ in each)
    assert all(request.version == f"v{request.epoch}" for request in mesh.inference.requests)
