"""The feature algebra: one definition of every feature, for the stream, for serving and for the offline replay.

`Layout.compile` turns the loop spec into slots and columns; `aggregate` turns a batch of events into deltas; `merge`
says what the online store does with them; `Reader.matrix` reads values; `Replay` is all of it in memory.
"""

from gyre_core.features.aggregation import (
    AggregatedBatch,
    Delta,
    EntityId,
    ItemLookup,
    aggregate,
    aggregate_batch,
    items_needed,
    reapply,
    touched,
)
from gyre_core.features.events import (
    ENTITY_KINDS,
    GLOBAL_ID,
    EntityKind,
    Event,
    FeatureAge,
    FieldsChanged,
    FieldValue,
    Impression,
    RequestContext,
    UserInteraction,
)
from gyre_core.features.identity import item_hash
from gyre_core.features.layout import Column, Layout
from gyre_core.features.reader import Reader
from gyre_core.features.remembering import BUFFER_IDLE_S, MAX_BUFFERED_BATCHES, ContributionBuffers, time_seen
from gyre_core.features.replay import Replay
from gyre_core.features.slots import EntityLayout
from gyre_core.features.state import State, batch_of, merge
from gyre_core.features.versions import Contribution, ItemCategories, ItemFields, Version, Versions, with_version

__all__ = [
    "BUFFER_IDLE_S",
    "ENTITY_KINDS",
    "GLOBAL_ID",
    "MAX_BUFFERED_BATCHES",
    "AggregatedBatch",
    "Column",
    "Contribution",
    "ContributionBuffers",
    "Delta",
    "EntityId",
    "EntityKind",
    "EntityLayout",
    "Event",
    "FeatureAge",
    "FieldValue",
    "FieldsChanged",
    "Impression",
    "ItemCategories",
    "ItemFields",
    "ItemLookup",
    "Layout",
    "Reader",
    "Replay",
    "RequestContext",
    "State",
    "UserInteraction",
    "Version",
    "Versions",
    "aggregate",
    "aggregate_batch",
    "batch_of",
    "item_hash",
    "items_needed",
    "merge",
    "reapply",
    "time_seen",
    "touched",
    "with_version",
]
