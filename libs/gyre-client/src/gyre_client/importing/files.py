"""Imports one file: reads and checks all of it, puts it in the order of time, and only then sends it."""

from __future__ import annotations

import heapq
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Mapping as MappingOf
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from gyre_core.features import Event, FieldsChanged
from gyre_core.spec import LoopSpec
from gyre_runtime import Invalid
from gyre_runtime.settings import KafkaSettings

from gyre_client.history import HistoryImport
from gyre_client.importing.events import events_by
from gyre_client.importing.mapping import Mapping
from gyre_client.importing.rows import Rejected, rows_of

RUN_EVENTS = 100_000
_CHUNK = 5_000


@dataclass(frozen=True, slots=True)
class ImportedFile:
    """What an import of a file did; `sent` and `known` make up all rows that fit.

    Attributes:
        sent: events sent and acknowledged; of a `check` all that fit.
        known: events that were there already, and were not sent.
        rejected: rows that did not fit.
        superseded: of the sent ones, those of the catalogue that change nothing, since a later change was there.
        odd_times: local times that came twice or were skipped, by `AMBIGUOUS` and `SKIPPED`.
    """

    sent: int
    known: int
    rejected: int
    superseded: int = 0
    odd_times: MappingOf[str, int] = field(default_factory=dict)


@dataclass
class FileImport:
    """The import of one file into a loop; an object is for one `check` or one `run`.

    The stream refuses what comes too late after newer events, so rows are sorted by time first: in runs of 100,000 on
    disk, merged while they are sent. So memory stays bounded, but for the ids, about 100 bytes for each event.

    Attributes:
        spec: the loop.
        mapping: which column is what.
        path: the file.
        rejects: where rows that do not fit are written, as JSON lines; a file of this name is replaced, and no file is
            there where all fit.
        on_read: called with how far the reading is and how far it goes, in bytes, of Parquet in rows.
        on_sent: called with how many events are done since the last call, and of how many.
    """

    spec: LoopSpec
    mapping: Mapping
    path: Path
    rejects: Path
    on_read: Callable[[int, int], object] = lambda *_: None
    on_sent: Callable[[int, int], object] = lambda *_: None
    _count: int = field(default=0, init=False)
    _rejected: int = field(default=0, init=False)
    _odd_times: Counter[str] = field(default_factory=Counter, init=False)

    def check(self) -> ImportedFile:
        """Read and check the file as `run` does, send nothing; `sent` counts all valid events, known ones included.

        Rows that do not fit are written to `rejects` and raise nothing.

        Raises:
            Invalid: it cannot be read as its suffix and mapping say, or no row fits.
            OSError: a file cannot be read or written.
        """
        count = sum(1 for _ in self._events())
        return ImportedFile(count, 0, self._rejected, odd_times=self._odd_times)

    async def run(self, settings: KafkaSettings) -> ImportedFile:
        """Import the rows that fit, in the order of time, without what Kafka holds already; the others go to `rejects`.

        Raises:
            Invalid: it cannot be read as its suffix and mapping say, or no row fits; nothing was sent.
            OSError: a file cannot be read or written; nothing was sent.
            Unavailable: Kafka gave events up; import again, nothing is sent twice.
        """
        with TemporaryDirectory(prefix="gyre-import-") as folder, ExitStack() as stack:
            runs = [stack.enter_context(each.open("rb")) for each in self._sorted_runs(Path(folder))]
            sent = known = superseded = 0
            async with HistoryImport(settings, self.spec) as history:
                for chunk in _chunks(_merged(runs)):
                    imported = await history.send(chunk)
                    sent, known = sent + imported.sent, known + imported.known
                    superseded += imported.superseded
                    self.on_sent(len(chunk), self._count)
        return ImportedFile(sent, known, self._rejected, superseded, self._odd_times)

    def _sorted_runs(self, folder: Path) -> list[Path]:
        """Write the events into files, each sorted by time."""
        runs: list[Path] = []
        waiting: list[Event] = []
        for event in self._events():
            waiting.append(event)
            if len(waiting) >= RUN_EVENTS:
                runs.append(_write_run(folder / f"{len(runs)}", waiting))
                waiting.clear()
        if waiting:
            runs.append(_write_run(folder / f"{len(runs)}", waiting))
        return runs

    def _events(self) -> Iterator[Event]:
        turn = events_by(self.mapping, self.spec, self._odd_times)
        self.rejects.unlink(missing_ok=True)
        with ExitStack() as stack:
            output = None
            for row in rows_of(self.path, self.mapping.columns().values(), self.mapping.csv, on_bytes=self.on_read):
                made = row if isinstance(row, Rejected) else turn(row)
                if isinstance(made, Rejected):
                    self._rejected += 1
                    if output is None:
                        output = stack.enter_context(self.rejects.open("w", encoding="utf-8"))
                    output.write(json.dumps(asdict(made)) + "\n")
                else:
                    self._count += 1
                    yield made
        if self._rejected and not self._count:
            raise Invalid("NOTHING_FITS", f"{self.path}: no row fits the mapping; {self.rejects} says why")


def _write_run(path: Path, events: list[Event]) -> Path:
    with path.open("wb") as output:
        for event in sorted(events, key=_order):
            pickle.dump(event, output, protocol=pickle.HIGHEST_PROTOCOL)
    return path


def _merged(runs: Sequence[BinaryIO]) -> Iterator[Event]:
    return heapq.merge(*map(_read_run, runs), key=_order)


def _order(event: Event) -> tuple[float, str]:
    """By time; changes of the catalogue of one time by what they change, so that those of one item come together."""
    return event.time, event.id if isinstance(event, FieldsChanged) else ""


def _read_run(run: BinaryIO) -> Iterator[Event]:
    while run.peek(1):  # type: ignore[attr-defined]
        yield pickle.load(run)  # noqa: S301 (written by this process a moment ago)


def _chunks(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Parts of at least 5,000 events, but for the last; changes of one item and time are in one part."""
    chunk: list[Event] = []
    for event in events:
        if len(chunk) >= _CHUNK and (_order(event) != _order(chunk[-1]) or not isinstance(event, FieldsChanged)):
            yield chunk
            chunk = []
        chunk.append(event)
    if chunk:
        yield chunk
