"""Lets Kafka compact forgotten users out of `catalog.users`.

Kafka compacts closed segments alone, and closes one that is older than `max.compaction.lag.ms` when the next record
comes (https://kafka.apache.org/documentation/#topicconfigs_max.compaction.lag.ms). In a partition that nobody writes to
any more a deleted user would stay for ever, and so would the record without a value that deletes them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from gyre_core.topics import topic
from gyre_privacy.tombstones import Tombstones
from gyre_runtime.errors import is_transient
from gyre_runtime.kafka import Producer

_NOBODY = ""
"""The key of the records: no user has it, and a record without a value under it says nothing to anybody."""
_LOG = logging.getLogger(__name__)


async def keep_compacting(producer: Producer, loops: Iterable[str], tombstones: Tombstones, *, every_s: float) -> None:
    """Write a record without a value to each partition of `catalog.users` at once and each `every_s`, until cancelled.

    Kafka being away is logged, and waits for the next round.

    Args:
        producer: with which to write.
        loops: whose topics; one in which nobody was forgotten is left alone.
        tombstones: followed elsewhere.
        every_s: seconds between two rounds.
    """
    await tombstones.ready()
    while True:
        for loop in loops:
            if not tombstones.exist(loop):
                continue
            try:
                await producer.delete(topic(loop, "catalog.users"), _NOBODY)
            except Exception as error:
                if not is_transient(error):
                    raise
                _LOG.warning("compaction of users waits", extra={"loop": loop, "problem": str(error)[:200]})
        await asyncio.sleep(every_s)
