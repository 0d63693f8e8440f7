"""The feature algebra: one definition of every feature, for the stream, for serving and for the offline replay.

`Layout.compile` turns the loop spec into slots and columns; `aggregate` turns a batch of events into deltas; `merge`
says what the online store does with them; `Reader.matrix` reads values; `Replay` is all of it in memory.
"""

from gyre_core.features.aggregation import Delta, EntityId, ItemLookup, aggregate, items_needed
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
from gyre_core.features.replay import Replay
from gyre_core.features.slots import EntityLayout
from gyre_core.features.state import State, batch_of, merge

__all__ = [
    "ENTITY_KINDS",
    "GLOBAL_ID",
    "Column",
    "Delta",
    "EntityId",
    "EntityKind",
    "EntityLayout",
    "Event",
    "FeatureAge",
    "FieldValue",
    "FieldsChanged",
    "Impression",
    "Interaction",
    "ItemLookup",
    "Layout",
    "Reader",
    "Replay",
    "RequestContext",
    "State",
    "aggregate",
    "batch_of",
    "item_hash",
    "items_needed",
    "merge",
]
