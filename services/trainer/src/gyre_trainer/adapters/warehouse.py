"""Waits until the archive has caught up with Kafka, then fixes what a run reads."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from gyre_core.models import MANIFEST_FILE, PINS_FOLDER
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_runtime import Unavailable
from gyre_runtime.kafka import start_whole
from gyre_warehouse.tables import TRAINING_TABLE_OF

from gyre_trainer.adapters.tables import LoopTables
from gyre_trainer.domain import Pins, Run
from gyre_trainer.settings import TrainerSettings

_LOG = logging.getLogger(__name__)
_POLL_S = 0.25
_TIMEOUT_MS = 10_000

Offsets = Mapping[str, Mapping[int, int]]
"""For each table, an offset by partition."""


class ArchivedWarehouse:
    """The tables of every loop, behind Kafka by as much as the archive is."""

    def __init__(self, settings: TrainerSettings, loops: Mapping[str, LoopSpec]) -> None:
        self._settings = settings
        self._loops = loops

    async def pin(self, loop: str) -> Pins:
        """See `Warehouse`."""
        wall = time.time()
        wanted = await _ends(self._settings.kafka, loop)
        tables = LoopTables(self._settings, loop)
        behind = await self._wait(tables, wanted)
        if behind:
            waited = self._settings.trainer_archive_wait_s
            _LOG.warning(
                "the archive is behind: training goes on without the newest events",
                extra={"loop": loop, "events": behind, "waited_s": waited},
            )
        now = None if self._loops[loop].clock == "replay" else wall
        return await asyncio.to_thread(tables.pin, now)

    async def hold(self, run: Run) -> None:
        """See `Warehouse`: a manifest beside the artefacts, which the warehouse's job reads as it reads theirs."""
        if run.pins is not None:
            await asyncio.to_thread(_write_pins, self._pins(run), run.pins)

    async def release(self, run: Run) -> None:
        """See `Warehouse`."""
        await asyncio.to_thread(shutil.rmtree, self._pins(run), ignore_errors=True)

    def _pins(self, run: Run) -> Path:
        return self._settings.artifacts.absolute() / run.loop / PINS_FOLDER / run.run_id

    async def _wait(self, tables: LoopTables, wanted: Offsets) -> int:
        """Wait for the archive; answer how many records it is behind when the time is over."""
        deadline = time.monotonic() + self._settings.trainer_archive_wait_s
        while True:
            behind = _behind(await asyncio.to_thread(tables.offsets), wanted)
            if not behind or time.monotonic() >= deadline:
                return behind
            await asyncio.sleep(_POLL_S)


def _behind(held: Offsets, wanted: Offsets) -> int:
    return sum(
        max(0, end - held.get(table, {}).get(partition, 0))
        for table, ends in wanted.items()
        for partition, end in ends.items()
    )


async def _ends(bootstrap: str, loop: str) -> dict[str, dict[int, int]]:
    """The next offset of each partition of the archived topics, by table.

    Raises:
        Unavailable: Kafka does not answer.
    """
    names = {topic(loop, suffix): table for suffix, table in TRAINING_TABLE_OF.items()}
    kafka = AIOKafkaConsumer(
        *names,
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        auto_offset_reset="latest",
        request_timeout_ms=_TIMEOUT_MS,
    )
    try:
        await start_whole(kafka.start)
        ends = await kafka.end_offsets(_partitions(kafka, names))
    except (KafkaError, OSError) as error:
        raise Unavailable("KAFKA_UNAVAILABLE", f"Kafka does not answer: {type(error).__name__}") from error
    finally:
        await kafka.stop()
    wanted: dict[str, dict[int, int]] = {table: {} for table in names.values()}
    for partition, end in ends.items():
        wanted[names[partition.topic]][partition.partition] = end
    return wanted


def _partitions(kafka: AIOKafkaConsumer, names: Iterable[str]) -> list[TopicPartition]:
    found = {name: kafka.partitions_for_topic(name) for name in names}
    missing = [name for name, numbers in found.items() if not numbers]
    if missing:
        raise Unavailable("TOPICS_NOT_VISIBLE", f"Kafka does not show {', '.join(missing)}")
    return [TopicPartition(name, number) for name, numbers in found.items() for number in numbers]


def _write_pins(folder: Path, pins: Pins) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{MANIFEST_FILE}"
    draft.write_text(json.dumps({"snapshots": dict(pins.snapshots)}))
    draft.rename(folder / MANIFEST_FILE)
