"""The database, off the event loop: one thread writes, a few read. SQLite in WAL mode."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from gyre_runtime import Precondition, Unavailable
from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, InterfaceError, NoSuchModuleError, OperationalError

from gyre_monitor.store import schema

_READERS = 2
_IN_CHUNK = 500
_BUSY_MS = 30_000
_CACHE_KIB = 64 * 1024
T = TypeVar("T")
P = ParamSpec("P")
Row = Mapping[str, Any]


class Database:
    """Runs functions on connections in threads; an async context manager that migrates on enter.

    Args:
        url: SQLAlchemy's database URL.
    """

    def __init__(self, url: str) -> None:
        self._is_sqlite = url.startswith("sqlite")
        self._writer, self._reader = _open(url, "BEGIN IMMEDIATE"), _open(url, "BEGIN")
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="sql-write")
        self._read_threads = ThreadPoolExecutor(_READERS, thread_name_prefix="sql-read")

    async def __aenter__(self) -> Self:
        """Create or migrate the tables.

        Raises:
            Unavailable: the database cannot be reached (DATABASE_UNAVAILABLE).
        """
        await self.write(schema.migrate)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what is under way and disconnect."""
        for threads in (self._write_thread, self._read_threads):
            await asyncio.to_thread(threads.shutdown, wait=True)
        self._writer.dispose()
        self._reader.dispose()

    async def write(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **options: P.kwargs) -> T:
        """Run `work` in one transaction, one at a time in the order of the calls; it gets a connection first.

        Raises:
            Unavailable: the database did not take it and may later (DATABASE_UNAVAILABLE).
        """
        bound = partial(_run, self._writer, lambda connection: work(connection, *args, **options))
        return await asyncio.get_running_loop().run_in_executor(self._write_thread, bound)

    async def read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **options: P.kwargs) -> T:
        """Run `work` on a snapshot of the database; it gets a connection first.

        Raises:
            Unavailable: the database did not answer (DATABASE_UNAVAILABLE).
        """
        bound = partial(_run, self._reader, lambda connection: work(connection, *args, **options))
        return await asyncio.get_running_loop().run_in_executor(self._read_threads, bound)

    async def forget_deleted(self) -> None:
        """Leave nothing of deleted rows in SQLite's write-ahead log; free pages are overwritten as they come free.

        Raises:
            Unavailable: somebody reads what is older for longer than a statement waits (DATABASE_BUSY).
        """
        if self._is_sqlite:
            await asyncio.get_running_loop().run_in_executor(self._write_thread, _truncate_log, self._writer)

    async def ping(self) -> None:
        """Check that the database answers; for a `Dependency`."""
        await self.read(schema.version)


def _run(engine: Engine, work: Callable[[Connection], T]) -> T:
    try:
        with engine.begin() as connection:
            return work(connection)
    except (OperationalError, InterfaceError) as error:
        raise Unavailable("DATABASE_UNAVAILABLE", f"the database did not answer: {error.orig}") from error


def _truncate_log(engine: Engine) -> None:
    try:
        with closing(engine.raw_connection()) as connection:
            is_busy, *_ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.OperationalError as error:  # SQLAlchemy's own errors are not raised by a raw connection
        raise Unavailable("DATABASE_UNAVAILABLE", f"the database did not answer: {error}") from error
    if is_busy:
        raise Unavailable("DATABASE_BUSY", "the write-ahead log still holds what was deleted: it is being read")


def _open(url: str, begin: str) -> Engine:
    try:
        engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        shown = _without_password(url)
        raise Precondition("BAD_DATABASE_URL", f"GYRE_MONITOR_DATABASE={shown!r}: {error}") from error
    if engine.dialect.name == "sqlite":
        if engine.url.database:
            Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        event.listen(engine, "connect", _tune_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return url.partition(":")[0] + ":…"


def _tune_sqlite(connection: Any, _record: object) -> None:
    """Let SQLAlchemy begin transactions (pysqlite would by itself, too late for a lock), and write ahead."""
    connection.isolation_level = None
    for setting in (
        f"busy_timeout={_BUSY_MS}",
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "temp_store=MEMORY",
        "secure_delete=ON",
        f"cache_size=-{_CACHE_KIB}",
    ):
        connection.execute(f"PRAGMA {setting}")


def insert_for(connection: Connection, table: Table) -> Any:
    """An insert that knows `on_conflict_do_update` and `on_conflict_do_nothing`, in the dialect of the connection."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def insert_new(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert rows; those whose key is there stay as they are."""
    if rows:
        connection.execute(insert_for(connection, table).on_conflict_do_nothing(), list(rows))


def upsert(connection: Connection, table: Table, rows: Sequence[Row], *, sums: Iterable[str] = ()) -> None:
    """Insert rows of the same columns; where the key is there, columns of `sums` grow and the others are replaced."""
    if not rows:
        return
    insert, summed = insert_for(connection, table), set(sums)
    keys = [column.name for column in table.primary_key]
    changes = {
        name: table.c[name] + insert.excluded[name] if name in summed else insert.excluded[name]
        for name in rows[0]
        if name not in keys
    }
    connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=changes), list(rows))


def chunks(values: Iterable[T]) -> Iterator[list[T]]:
    """Cut values into lists that fit into one `IN`."""
    everything = list(values)
    for start in range(0, len(everything), _IN_CHUNK):
        yield everything[start : start + _IN_CHUNK]
