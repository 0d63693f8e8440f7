"""Served features of the newest impressions as mergeable sketches, in the bins of the live model's training set.

Each partition counts by itself, and what all count adds up. Two panes of rows are kept, of which the older one goes
when the newer one is full, so that old rows are forgotten and there are always enough to judge.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as pb
from gyre_core.models import CLASSIFIER_FILE, MANIFEST_FILE, REFERENCE_FILE
from gyre_core.spec import LoopSpec
from gyre_quality.columns import hashed
from gyre_quality.domain_classifier import DomainClassifier
from gyre_quality.drift import Reference
from gyre_quality.sketches import Reservoir, Sketch
from gyre_runtime.events import Event

from gyre_features.quality.served import features_served

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]
_PER_IMPRESSION = 5
"""As many items of each impression as the training set's reference takes."""
_BUFFER_ROWS = 2000
_SAMPLE_BYTES = 256 * 1024
"""The most that a sample may take, so that two of them fit into a message."""


@dataclass(frozen=True)
class LiveReference:
    """What the live model was trained on.

    Attributes:
        version: of the model.
        layout: hash of the feature layout that it reads.
        width: how many columns the layout has.
        indices: of these columns, those that the model reads, in its order.
        since: event time from which impressions are new to it, unix seconds.
        reference: of its training set, by feature.
        classifier: of all features together; None where the model left none.
    """

    version: str
    layout: str
    width: int
    indices: tuple[int, ...]
    since: float
    reference: Reference
    classifier: DomainClassifier | None

    @classmethod
    def read(cls, folder: Path, spec: LoopSpec) -> LiveReference | None:
        """The reference in a version's artefact folder; None where its manifest or the reference is missing.

        Raises:
            ValueError: it is there and cannot be read, whatever stands in its files.
        """
        if not (folder / MANIFEST_FILE).exists() or not (folder / REFERENCE_FILE).exists():
            return None
        try:
            return cls._of(folder, spec)
        except Exception as error:
            raise ValueError(f"{folder}: the reference cannot be read: {error!r}") from error

    @classmethod
    def _of(cls, folder: Path, spec: LoopSpec) -> LiveReference:
        known = json.loads((folder / MANIFEST_FILE).read_text())
        columns: list[str] = known["columns"]
        beside = folder / CLASSIFIER_FILE
        return cls(
            version=known["version"],
            layout=known["layout"],
            width=len(columns),
            indices=tuple(columns.index(name) for name in known["model_columns"]),
            since=known["data_time"] - spec.training.label.attribution_window_s,
            reference=Reference.from_bytes((folder / REFERENCE_FILE).read_bytes()),
            classifier=DomainClassifier.from_bytes(beside.read_bytes()) if beside.exists() else None,
        )

    @property
    def capacity(self) -> int:
        """How many rows a pane's sample keeps at most, so that two fit a message; 0 without a classifier."""
        if self.classifier is None:
            return 0
        return min(self.classifier.reference.capacity, _SAMPLE_BYTES // (4 * len(self.indices)))

    def rows_of(self, event: Event) -> tuple[F32, U64] | None:
        """At most 5 items of an impression, always the same: the model's features, float32 [items, features], and ids.

        None for other events, for impressions before `since`, and for those without features of this layout.
        """
        message = event.message
        if not isinstance(message, behavior.Impression) or event.time < self.since:
            return None
        matrix = features_served(message, self.layout, self.width)
        if matrix is None:
            return None
        digest = blake2b(f"{event.source}\0{event.id}".encode(), digest_size=8).digest()
        first = np.frombuffer(digest, dtype="<u8")
        ids = hashed(first + np.arange(len(matrix), dtype=np.uint64), 0)
        chosen = np.argsort(ids)[:_PER_IMPRESSION]
        return matrix[chosen][:, list(self.indices)].astype(np.float32), ids[chosen]


@dataclass(frozen=True, slots=True)
class Pane:
    """A block of served feature rows, of which only a sketch is held, and a sample of rows for a domain classifier.

    It never changes: what adds to it answers a new one.

    Attributes:
        sketch: counts of the rows, in the bins of a reference.
        sample: some of the rows; None without a classifier.
    """

    sketch: Sketch
    sample: Reservoir | None

    @classmethod
    def empty(cls, reference: LiveReference) -> Pane:
        """A pane without rows, in the bins of a reference."""
        capacity, width = reference.capacity, len(reference.indices)
        return cls(Sketch.empty(reference.reference.bins), Reservoir.empty(capacity, width) if capacity else None)

    @classmethod
    def read(cls, reference: LiveReference, sketch: bytes, sample: bytes) -> Pane:
        """A pane from the bytes of `to_bytes`; an empty one where `sketch` is empty."""
        made = cls.empty(reference)
        if not sketch:
            return made
        kept = Reservoir.from_bytes(sample) if sample and made.sample is not None else made.sample
        return cls(Sketch.from_bytes(reference.reference.bins, sketch), kept)

    def add(self, rows: F32, ids: U64) -> Pane:
        """A new pane with further rows, float32 [rows, features]; by its id the sample takes a row or not."""
        sketch = self.sketch.merge(Sketch.of_matrix(self.sketch.bins, rows))
        return Pane(sketch, None if self.sample is None else self.sample.add(rows, ids))

    def merge(self, other: Pane) -> Pane:
        """A new pane with the rows of both, which are of one reference; without a sample where either has none.

        Rows that are in both count twice in the sketch.
        """
        both = None if self.sample is None or other.sample is None else self.sample.merge(other.sample)
        return Pane(self.sketch.merge(other.sketch), both)

    def to_bytes(self) -> tuple[bytes, bytes]:
        """Sketch and sample as they are published; the sample is empty where there is none."""
        return self.sketch.to_bytes(), b"" if self.sample is None else self.sample.to_bytes()


class PartitionSketch:
    """Counts the served features of one partition of impressions, in two panes: a full one replaces the older.

    Args:
        loop: its name.
        partition: of its impressions.
        reference: of the live model.
        pane_rows: how many rows fill a pane.
        known: what was published of the partition before, by whomever; of another model it counts for nothing.
    """

    def __init__(
        self, loop: str, partition: int, reference: LiveReference, *, pane_rows: int, known: pb.LiveSketch | None
    ) -> None:
        self.reference = reference
        self._loop, self._partition, self._pane_rows = loop, partition, pane_rows
        known = known if known is not None and known.version == reference.version else pb.LiveSketch()
        self._newer = Pane.read(reference, known.sketch, known.sample)
        self._older = Pane.read(reference, known.earlier_sketch, known.earlier_sample)
        self._newest_time = known.newest_event_time.ToNanoseconds() / 1e9
        self._end = self._published_end = known.end_offset
        self._buffer: list[tuple[F32, U64]] = []
        self._buffered = 0
        self.changed = False

    @property
    def resume_offset(self) -> int:
        """The offset at which a successor begins: after what was published, and what was counted since without rows."""
        return self._published_end if self.changed else self._end

    def count(self, offset: int, event: Event | None) -> None:
        """Count the record at an offset, None for one that cannot be read.

        An offset that was counted before is ignored.

        Offsets come in rising order. Only impressions that `LiveReference.rows_of` takes add rows and set `changed`.
        """
        if offset < self._end:
            return
        if not self.changed:
            self._published_end = offset
        self._end = offset + 1
        rows = None if event is None else self.reference.rows_of(event)
        if event is None or rows is None:
            return
        self.changed = True
        self._newest_time = max(self._newest_time, event.time)
        self._buffer.append(rows)
        self._buffered += len(rows[1])
        if self._buffered >= _BUFFER_ROWS:
            self._empty_buffer()

    def _empty_buffer(self) -> None:
        if not self._buffer:
            return
        if self._newer.sketch.rows >= self._pane_rows:
            self._older, self._newer = self._newer, Pane.empty(self.reference)
        self._newer = self._newer.add(*(np.concatenate(each) for each in zip(*self._buffer, strict=True)))
        self._buffer, self._buffered = [], 0

    def message(self) -> pb.LiveSketch:
        """Everything that was counted, as it is published.

        Nothing is sent here, so call `published` once Kafka has it.
        """
        self._empty_buffer()
        published = pb.LiveSketch(
            loop=self._loop, version=self.reference.version, partition=self._partition, end_offset=self._end
        )
        published.newest_event_time.FromNanoseconds(round(self._newest_time * 1e9))
        published.sketch, published.sample = self._newer.to_bytes()
        published.earlier_sketch, published.earlier_sample = self._older.to_bytes()
        return published

    def published(self, message: pb.LiveSketch) -> None:
        """Note that Kafka has a message of `message`: `changed` is then False, unless records were counted since."""
        self._published_end = message.end_offset
        self.changed = self._end > message.end_offset


def whole_of(reference: LiveReference, published: list[pb.LiveSketch]) -> Pane:
    """A pane with the rows of all partitions, older and newer; sketches of another model are left out."""
    whole = Pane.empty(reference)
    for each in published:
        if each.version == reference.version:
            whole = whole.merge(Pane.read(reference, each.sketch, each.sample))
            whole = whole.merge(Pane.read(reference, each.earlier_sketch, each.earlier_sample))
    return whole
