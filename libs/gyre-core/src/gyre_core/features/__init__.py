"""The feature algebra: one definition of every feature, for the stream, for serving and for the offline replay.

`Layout.compile` turns the loop spec into slots and columns; `aggregate` turns a batch of events into deltas; `merge`
says what the online store does with them; `Reader.matrix` reads values; `Replay` is all of it in memory.
"""

from gyre_core.features.aggregation import (
    Batch,
    Delta,
    EntityId,
    ItemLookup,
    aggregate,
    aggregate_batch,
    items_needed,
    refold,
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
    Interaction,
    RequestContext,
)
from gyre_core.features.identity import item_hash
from gyre_core.features.layout import Column, Layout
from gyre_core.features.reader import Reader
from gyre_core.features.remembering import MOST_BATCHES, Remembered
from gyre_core.features.replay import Replay
from gyre_core.features.slots import EntityLayout
from gyre_core.features.state import State, batch_of, merge
from gyre_core.features.versions import Fold, Held, ItemFields, Version, Versions, with_version

__all__ = [
    "ENTITY_KINDS",
    "GLOBAL_ID",
    "MOST_BATCHES",
    "Batch",
    "Column",
    "Delta",
    "EntityId",
    "EntityKind",
    "EntityLayout",
    "Event",
    "FeatureAge",
    "FieldValue",
    "FieldsChanged",
    "Fold",
    "Held",
    "Impression",
    "Interaction",
    "ItemFields",
    "ItemLookup",
    "Layout",
    "Reader",
    "Remembered",
    "Replay",
    "RequestContext",
    "State",
    "Version",
    "Versions",
    "aggregate",
    "aggregate_batch",
    "batch_of",
    "item_hash",
    "items_needed",
    "merge",
    "refold",
    "touched",
    "with_version",
]
