"""The job `maintain`: prunes what the monitor remembers of old models; the monitor itself does so as it runs, too."""

import asyncio
import sys

from gyre_runtime import load_loops

from gyre_monitor.settings import MonitorSettings
from gyre_monitor.store.database import Database
from gyre_monitor.store.model_retention import ModelRetention


def maintain(settings: MonitorSettings, *, dry_run: bool) -> int:
    """Print how many rows are to go and, unless it is a dry run, delete them; answer the exit code."""
    retention = ModelRetention.of(load_loops(settings))

    async def work() -> None:
        async with Database(settings.database_url) as database:
            planned = await database.write(retention.plan)
            for loop in retention.rollouts:
                counts = {table: count for (of, table), count in planned.items() if of == loop and count}
                rows = ", ".join(f"{count:,} of {table}" for table, count in counts.items())
                sys.stdout.write(f"{loop}: rows to delete: {rows or 'none'}\n")
            if not dry_run:
                await database.write(retention.prune, always=True)

    asyncio.run(work())
    return 0
