"""The job `maintain`: removes versions from Triton's repository that no rollout needs, as a killed deployer leaves.

The deployer does so itself after each change. Its log needs no job: it starts from snapshots, and Kafka deletes what is
older than `retention.model_log`.
"""

from __future__ import annotations

import asyncio
import sys

from gyre_core.models import triton_model
from gyre_runtime import Unavailable, load_loops

from gyre_deployer.adapters.kafka_log import KafkaRolloutLog
from gyre_deployer.adapters.repository import TritonRepository
from gyre_deployer.adapters.triton import TritonControl
from gyre_deployer.settings import DeployerSettings


def maintain(settings: DeployerSettings, *, dry_run: bool) -> int:
    """Print what is to go and, unless it is a dry run, remove it; answer 1 where something waits, else 0.

    An empty log removes nothing: Kafka was made anew, and what serves is not known.
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
            spare = [version for version in installed if version not in state.used]
            if spare and not state.epoch:
                rule = "the log must hold a rollout before any is removed"
                sys.stdout.write(
                    f"{loop}: nothing is removed: {len(spare)} versions, and an empty rollout log: {rule}\n"
                )
                code = 1
                continue
            ended = sum(not rollout.is_under_way for rollout in state.rollouts.values())
            sys.stdout.write(
                f"{loop}: {len(spare)} of {len(installed)} versions to remove from Triton's repository"
                f"{': ' if spare else ''}{', '.join(spare)}; {ended} ended rollouts are remembered,"
                f" {spec.retention.rollouts} at most beside those in use\n"
            )
            if dry_run:
                continue
            for version in spare:
                await triton.unload(triton_model(loop, version))
                await repository.remove(loop, version)
            await repository.finish_removals(loop)
    return code
