"""What a batch of events will change on a virtual shard, made ready for the store's script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gyre_core.features import EntityId, Versions

from gyre_features.online.script import BufferChange
from gyre_features.stream.repeats import WithoutRepeats


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """What a batch will change on one virtual shard, from what was known before it; nothing of it is written yet.

    Attributes:
        fresh: count of its events that the applied offsets did not cover, repeats included.
        selected: those that count, and what is to be remembered of them.
        deltas: what they change on the virtual shard, packed.
        changes: event times of the changes of stored fields, by entity of the virtual shard.
        fencing: the token that it was made under: who was forgotten before that is left out.
        items_version: of the items' fields that were looked up; None for none.
        base: the last batch when what changed fields concern was read; None where nothing was.
        whole: packed values that replace the stored ones, corrected for fields that came late.
        versions: all field versions of the items whose fields change, as the batch leaves them, oldest first.
        older: those before the newest, packed, which are stored beside the value, with their time to live in seconds.
        buffers: the changes to the buffers of contributions; see `LateFields.buffer_changes`.
        late: events by what their items' fields have to do with time, see `gyre_features_late_fields_total`.
    """

    fresh: int
    selected: WithoutRepeats
    deltas: Mapping[EntityId, bytes]
    changes: Mapping[EntityId, Sequence[float]]
    fencing: str = ""
    items_version: int | None = None
    base: int | None = None
    whole: Mapping[EntityId, bytes] = field(default_factory=dict)
    versions: Mapping[str, Versions] = field(default_factory=dict)
    older: Mapping[str, tuple[bytes, int]] = field(default_factory=dict)
    buffers: tuple[BufferChange, ...] = ()
    late: Mapping[str, int] = field(default_factory=dict)
