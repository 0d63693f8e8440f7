"""A fill that is cut short leaves each partition's replay clock as the log had it, for the stream that goes on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_client.clock import clock_mark
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec
from gyre_features.online.store import OnlineStore
from gyre_features.processes.stream import TYPES
from gyre_features.settings import FeaturesSettings
from gyre_features.stream import backfill
from gyre_features.stream.backfill import Archived
from gyre_features.warehouse.archive import Archive
from gyre_runtime.admission import Admission
from gyre_runtime.checkpoints import Checkpoint, Place, witness_of
from gyre_runtime.events import Event, encode
from gyre_warehouse.tables import open_catalog
from redis.asyncio import Redis

pytestmark = pytest.mark.adapter
BEGIN, STRAY, NOW = 1_370_000_000.0, 1_577_836_800.0, 1_700_000_000.0


class _Killed(Exception):  # noqa: N818 - what happens to the fill
    pass


def _record(name: str, offset: int, message: Any, at: float) -> Any:
    """A record as Kafka gives it."""
    sent = encode(message, source="shop", time=at, key="u", id=f"e{offset}")
    return SimpleNamespace(
        topic=name,
        partition=0,
        offset=offset,
        key=sent.key,
        value=sent.value,
        headers=sent.headers,
        timestamp=round((NOW + offset) * 1000),
        timestamp_type=1,
    )


def _log(name: str) -> list[Any]:
    """A first event of 2020, a mark that turns the clock back, and ratings of 2013, of which one is of 2020, too."""
    rating = behavior.Interaction(user_id="u", item_id="i1", type="rating", value=5)
    log = [_record(name, 0, rating, STRAY), _record(name, 1, clock_mark(BEGIN, back=True), BEGIN)]
    log += [_record(name, 2 + number, rating, BEGIN + number) for number in range(300)]
    log[200] = _record(name, 200, rating, STRAY)
    return log


@pytest.fixture
def store(redis: Redis, spec: LoopSpec, layout: Layout) -> OnlineStore:
    """A store that is killed with the fill's second batch."""
    store, calls = OnlineStore(redis, spec, layout), 0
    apply = store.apply

    async def cut_short(shard: int, write: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise _Killed
        return await apply(shard, write)

    store.apply = cut_short  # type: ignore[method-assign]
    return store


@pytest.mark.parametrize(("batch_events", "offsets_at_once"), [(100, 20_000), (20_000, 100)])
async def test_the_stream_decides_as_the_archive_did_after_a_fill_that_was_cut_short(
    store: OnlineStore,
    tmp_path: Path,
    batch_events: int,
    offsets_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it ended within a range of offsets or between two: what is left of the log is admitted as it was."""
    monkeypatch.setattr(backfill, "_OFFSETS_AT_ONCE", offsets_at_once)
    loop = store.spec.loop
    name = f"{loop}.behavior.interactions"
    place: Place = (name, 0)
    log, admission, decided, events = _log(name), Admission({loop: store.spec}, TYPES), list[str](), list[Event]()
    for record in log:
        decision = admission.decide(record)
        decided.append("ok" if isinstance(decision, Event) else getattr(decision, "reason", "mark"))
        if isinstance(decision, Event):
            events.append(decision._replace(clock=admission.clock(*place).newest))
    assert decided.count("ok") == len(log) - 2
    catalog = open_catalog(FeaturesSettings(warehouse=str(tmp_path / "warehouse")))
    archive = Archive(catalog, rows=10**6, seconds=60, payload_bytes=10**9)
    end = Checkpoint(len(log), 0, witness_of(log[-1]), admission.clock(*place))
    await archive.add(events, {place: end})
    await archive.flush()
    with pytest.raises(_Killed):
        await Archived(store, max_events=batch_events).apply(catalog, [place])
    (found,) = await store.checkpoints([place])
    reached = found[place]
    assert 0 < reached.offset < 200
    stream = Admission({loop: store.spec}, TYPES)
    stream.start(*place, reached.clock)
    rest = [stream.decide(record) for record in log[reached.offset :]]
    said = ["ok" if isinstance(each, Event) else getattr(each, "reason", "mark") for each in rest]
    assert said == decided[reached.offset :]
