"""Fills a layout from the warehouse in a process of its own, so that the streams that are read are not slowed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

from gyre_core.layouts import LayoutDefinition
from gyre_privacy.masking import read_keyring
from gyre_privacy.tombstones import Tombstones
from gyre_runtime import Unavailable, load_loops
from gyre_runtime.checkpoints import Place
from gyre_warehouse.rows import RowCounts
from gyre_warehouse.tables import open_catalog
from pyiceberg.exceptions import RESTError
from sqlalchemy.exc import OperationalError

from gyre_features.online.connection import open_redis, open_store
from gyre_features.online.store import OnlineStore
from gyre_features.settings import StreamSettings
from gyre_features.stream.backfill import Archived, missing_events

_NICENESS = 10
_FEW_EVENTS = 20_000
"""So few events are applied by the stream's own process: another one takes seconds to start."""
_KILL_S = 5.0


@dataclass(frozen=True)
class FillJob:
    """What one process fills.

    Attributes:
        settings: where Kafka, the store and the warehouse are.
        loop: its name.
        definition: of the layout.
        generation: which of the layout's stores is filled, as `KnownLayout` says.
        places: the topic partitions whose archived events are applied, from the store's applied offsets on.
        gives_way: another layout is read meanwhile, so this one fills in small batches for a share of the time.
    """

    settings: StreamSettings
    loop: str
    definition: LayoutDefinition
    generation: int
    places: tuple[Place, ...]
    gives_way: bool


async def run_fill(job: FillJob, store: OnlineStore, tombstones: Tombstones) -> None:
    """Apply what the warehouse holds beyond the store, and return then; nothing where the store is as far.

    Where there is much to apply it is done in a process, which ends where the caller is cancelled. Sets the metrics of
    the rows that were read.

    Args:
        job: what is filled.
        store: of the layout, on the caller's connection.
        tombstones: followed elsewhere.

    Raises:
        Unavailable: store or warehouse do not answer, or the process failed; what was applied stands, start again.
    """
    try:
        catalog = await asyncio.to_thread(open_catalog, job.settings)
        count = await missing_events(catalog, store, job.places)
        if count > _FEW_EVENTS:
            await _in_process(job)
        elif count:
            archived = _archived(job, store, tombstones)
            try:
                await archived.apply(catalog, job.places)
            finally:
                archived.rows.publish(job.loop)
    except (OperationalError, RESTError, OSError) as error:
        raise Unavailable("WAREHOUSE_UNAVAILABLE", f"the warehouse does not answer: {error}") from error


async def _in_process(job: FillJob) -> None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_fill, args=(job, sender), daemon=True)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    process.start()
    sender.close()
    loop.add_reader(process.sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process.sentinel)
        if process.is_alive():
            process.terminate()
        await asyncio.to_thread(process.join, _KILL_S)
        if process.is_alive():
            process.kill()
        with receiver, suppress(EOFError, OSError):  # of a process that was killed nothing is known
            rows: RowCounts = receiver.recv()
            rows.publish(job.loop)
    if process.exitcode:
        raise Unavailable("FILL_FAILED", f"filling {job.loop} from the warehouse ended with {process.exitcode}")


def _fill(job: FillJob, sender: Connection) -> None:
    """Do a job, and send how many rows were read, since nobody reads the metrics of this process."""
    if job.gives_way:
        os.nice(_NICENESS)
    try:
        asyncio.run(_applied(job, sender))
    except Exception as error:  # noqa: BLE001 - the outermost boundary of the process
        sys.stderr.write(f"filling {job.loop} from the warehouse: {type(error).__name__}: {error}\n")
        sys.exit(1)


async def _applied(job: FillJob, sender: Connection) -> None:
    settings, newest = job.settings, load_loops(job.settings)[job.loop]
    tombstones = Tombstones({job.loop: newest}, read_keyring(settings))
    async with tombstones.following(settings), open_redis(settings) as redis:
        store = open_store(settings, redis, job.definition.spec(newest), job.generation)
        catalog = await asyncio.to_thread(open_catalog, settings)
        archived = _archived(job, store, tombstones)
        try:
            await archived.apply(catalog, job.places)
        finally:
            sender.send(archived.rows)


def _archived(job: FillJob, store: OnlineStore, tombstones: Tombstones) -> Archived:
    settings, max_events, share = job.settings, job.settings.features_batch_events, 1.0
    if job.gives_way:
        max_events, share = settings.features_fill_batch_events, settings.features_fill_share
    return Archived(
        store,
        max_events=max_events,
        share=share,
        forgotten=tombstones.cover,
        read_tombstones=partial(tombstones.catch_up, job.loop),
    )
