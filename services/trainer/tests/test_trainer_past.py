"""Features that are computed again count the events that the stream counts: its windows of append times decide."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import pyarrow as pa
import pytest
from gyre_core.features import Layout, RequestContext
from gyre_core.spec import parse_loop
from gyre_trainer.past import Asked, Past
from gyre_warehouse.tables import IMPRESSIONS, INTERACTIONS, ITEMS, arrow_schema

BEGIN = 1_700_000_000.0
SPEC = parse_loop(
    """
version: 1
loop: shop
events: {interactions: {click: {}, view: {}}}
items: {fields: {price: {kind: number}}}
features:
  - {name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [36500d]}
  - {name: shown, kind: decayed_count, scope: item, events: [impression], half_lives: [36500d]}
"""
)


class Stored(NamedTuple):
    """An event in the warehouse: its id, or of an impression its request; when Kafka had it, seconds after `BEGIN`."""

    id: str
    at: float
    partition: int = 0
    type: str = "click"


def _rows(name: str, events: Sequence[Stored]) -> pa.Table:
    """Rows of interactions, or of impressions of one item, in the order of their offsets."""
    rows = [
        {
            "source": "shop",
            "event_id": f"{offset}" if name == IMPRESSIONS else each.id,
            "request_id": each.id,
            "event_time": datetime.fromtimestamp(BEGIN + each.at, UTC),
            "ingest_time": datetime.fromtimestamp(BEGIN + each.at, UTC),
            "kafka_partition": each.partition,
            "kafka_offset": offset,
            "user_id": "u",
            "item_id": "i",
            "item_ids": ["i"],
            "shown": 1,
            "type": each.type,
        }
        for offset, each in enumerate(events)
    ]
    schema = arrow_schema(INTERACTIONS if name == INTERACTIONS else IMPRESSIONS)
    columns = {field.name: [row.get(field.name) for row in rows] for field in schema}
    return pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in schema]))


@pytest.mark.parametrize("name", [INTERACTIONS, IMPRESSIONS])
@pytest.mark.parametrize(
    ("events", "counted"),
    [
        ([Stored("a", 0), Stored("a", 60)], 1),
        ([Stored("a", 0), Stored("b", 700), Stored("c", 1300), Stored("a", 1301)], 4),
        ([Stored("a", 0), Stored("b", 700, 1, "view"), Stored("a", 701)], 1),
        ([Stored("a", 0), Stored("a", 1, partition=1)], 2),
    ],
)
def test_a_repeat_counts_where_the_stream_counts_it(name: str, events: list[Stored], counted: int) -> None:
    """An id, or a request, counts again in another partition, and once a whole window is between the two."""
    layout = Layout.compile(SPEC)
    empty = {each: arrow_schema(each).empty_table() for each in (INTERACTIONS, IMPRESSIONS, ITEMS)}
    found = empty | {name: _rows(name, events)}
    past = Past(layout, interactions=found[INTERACTIONS], items=found[ITEMS], shown=found[IMPRESSIONS])
    matrix, _ = past.matrix(Asked("u", ["i"], RequestContext(BEGIN + 2000)))
    views = sum(each.type == "view" for each in events) if name == IMPRESSIONS else 0
    assert matrix.max() == pytest.approx(counted + views, abs=0.01)
