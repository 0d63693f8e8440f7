"""Runs in SQLite: one row each, durable when a call returns."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gyre_runtime import Unavailable

from gyre_trainer.domain import Pins, Run, RunState

FILE = "trainer.db"
_SCHEMA = """
create table if not exists runs (
  run_id text primary key,
  loop text not null,
  state text not null,
  create_time real not null,
  body text not null
) strict;
create index if not exists runs_by_loop on runs (loop, create_time);
create index if not exists runs_by_state on runs (state, create_time);
"""
_SAVE = """
insert into runs (run_id, loop, state, create_time, body) values (:run_id, :loop, :state, :create_time, :body)
on conflict (run_id) do update set state = excluded.state, body = excluded.body
"""
_NEXT = """
select body from runs where state not in ('REGISTERED', 'REFUSED', 'FAILED')
order by state = 'QUEUED', create_time, rowid limit 1
"""
_NEWEST = "select body from runs where loop = ? order by create_time desc, rowid desc limit ?"

_MARK = """
update runs set body = json_set(body, '$.removed_time', :now)
where run_id = :run_id and json_extract(body, '$.removed_time') is null
"""
_MARK_DONE = """
update runs set body = json_set(body, '$.is_removed', json('true'), '$.mlflow_run_id', '')
where run_id = :run_id
"""
_REPEATABLE = "select body from runs where loop = ? and json_extract(body, '$.erased_time') is null"
_UNRECORDED = """
select body from runs where json_extract(body, '$.erased_time') is not null
and state in ('REGISTERED', 'REFUSED', 'FAILED') and json_extract(body, '$.version') <> ''
and not coalesce(json_extract(body, '$.is_removed'), 0) and not coalesce(json_extract(body, '$.erased_recorded'), 0)
"""


class SqliteRuns:
    """Keeps runs in `trainer.db` of a folder, which it makes; an async context manager.

    Each method raises Unavailable (RUNS_UNAVAILABLE) where the file cannot be read or written at the moment.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(folder / FILE, isolation_level=None)
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = full")
        self._db.execute("pragma busy_timeout = 10000")
        self._db.executescript(_SCHEMA)

    async def __aenter__(self) -> Self:
        """It is open already."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def save(self, run: Run) -> None:
        """See `RunStore`."""
        body = asdict(run)
        named = {name: body[name] for name in ("run_id", "loop", "state", "create_time")}
        self._write(_SAVE, {**named, "body": json.dumps(body)})

    def get(self, run_id: str) -> Run | None:
        """See `RunStore`."""
        return next(iter(self._read("select body from runs where run_id = ?", run_id)), None)

    def newest(self, loop: str, limit: int) -> list[Run]:
        """See `RunStore`."""
        return self._read(_NEWEST, loop, limit)

    def next_due(self) -> Run | None:
        """See `RunStore`."""
        return next(iter(self._read(_NEXT)), None)

    def repeatable(self, loop: str) -> list[Run]:
        """See `RunStore`."""
        return self._read(_REPEATABLE, loop)

    def unrecorded(self) -> list[Run]:
        """See `RunStore`."""
        return self._read(_UNRECORDED)

    def mark_removed(self, run_id: str, now: float, *, is_done: bool) -> None:
        """Mark that the removal of a run's model has begun or, if `is_done`, has ended; only the job does that."""
        self._write(_MARK_DONE if is_done else _MARK, {"run_id": run_id, "now": now})

    def forget(self, run_id: str) -> None:
        """Remove a run."""
        self._write("delete from runs where run_id = :run_id", {"run_id": run_id})

    def _write(self, statement: str, values: Mapping[str, object]) -> None:
        with _available():
            self._db.execute(statement, values)

    def _read(self, query: str, *values: object) -> list[Run]:
        with _available(), closing(self._db.execute(query, values)) as rows:
            return [_run(json.loads(body)) for (body,) in rows.fetchall()]


@contextmanager
def _available() -> Iterator[None]:
    """Raise Unavailable for what SQLite may take later: the file is locked or cannot be reached, the disk is full."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise Unavailable("RUNS_UNAVAILABLE", f"{FILE}: {error}") from error


def _run(body: dict[str, Any]) -> Run:
    pins = body.pop("pins")
    return Run(**{**body, "state": RunState(body["state"])}, pins=Pins(**pins) if pins else None)
