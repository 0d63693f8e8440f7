"""The job `maintain`: removes versions from Triton's repository that no rollout needs, as a killed deployer leaves.

The deployer does so itself after each change. Its log needs no job: it starts from snapshots, and Kafka deletes what is
older than `retention.model_log`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence

from gyre_core.models import triton_model
from gyre_runtime import Unavailable, load_loops

from gyre_deployer.adapters.kafka_log import KafkaRolloutLog
from gyre_deployer.adapters.repository import TritonRepository
from gyre_deployer.adapters.triton import TritonControl
from gyre_deployer.adapters.views import KafkaGateways
from gyre_deployer.domain.rollouts import LoopState
from gyre_deployer.domain.strangers import may_be_asked, spare
from gyre_deployer.settings import DeployerSettings


def maintain(settings: DeployerSettings, *, dry_run: bool) -> int:
    """Print what is to go and, unless it is a dry run, remove it; answer 1 where something waits, else 0.

    An empty log removes nothing: Kafka was made anew, and what serves is not known. Nor does a log remove versions that
    it never knew, as long as gateways may ask them.
    """
    try:
        return asyncio.run(_maintain(settings, dry_run=dry_run))
    except Unavailable as error:
        sys.stdout.write(f"not all was done: {error}\n")
        return 1


async def _maintain(settings: DeployerSettings, *, dry_run: bool) -> int:
    code = 0
    repository = TritonRepository(settings.triton_repository)
    async with TritonControl(settings, timeout_s=settings.deployer_triton_timeout_s) as triton:
        for loop, spec in load_loops(settings).items():
            # The folder first: a version that is installed after this is not among it, whatever the log says by then.
            installed = await repository.installed(loop)
            state, _ = await KafkaRolloutLog(settings.kafka, loop).read()
            gone = await _to_remove(settings, state, installed)
            held = [version for version in installed if version not in state.used and version not in gone]
            if held:
                sys.stdout.write(_holding(state, held))
                code = 1
            if not state.epoch:
                continue
            ended = sum(not rollout.is_under_way for rollout in state.rollouts.values())
            sys.stdout.write(
                f"{loop}: {len(gone)} of {len(installed)} versions to remove from Triton's repository"
                f"{': ' if gone else ''}{', '.join(gone)}; {ended} ended rollouts are remembered,"
                f" {spec.retention.rollouts} at most beside those in use\n"
            )
            if dry_run:
                continue
            for version in gone:
                await triton.unload(triton_model(loop, version))
                await repository.remove(loop, version)
            await repository.finish_removals(loop)
    return code


async def _to_remove(settings: DeployerSettings, state: LoopState, installed: Sequence[str]) -> list[str]:
    """The versions that no rollout needs, without those of which the log knows nothing while they may be asked."""
    if not state.epoch or not spare(installed, state, with_strangers=True):
        return []
    async with KafkaGateways(settings.kafka, state.loop) as gateways:
        is_held = may_be_asked(state, gateways.reports(), time.monotonic())
    return spare(installed, state, with_strangers=not is_held)


def _holding(state: LoopState, held: Sequence[str]) -> str:
    """Why versions stay that the log does not need."""
    if not state.epoch:
        rule = "the log must hold a rollout before any is removed"
        return f"{state.loop}: nothing is removed: {len(held)} versions, and an empty rollout log: {rule}\n"
    rule = "it must have a live model, and all gateways follow it, before they are removed"
    return (
        f"{state.loop}: {len(held)} versions stay of which the rollout log knows nothing: {rule}: {', '.join(held)}\n"
    )
