"""Events that were admitted and that their table cannot hold all the same: they are set aside by place and reason.

One such event must neither stop its batch nor vanish. The table `refused_rows` holds no payload and no id, which may be
made from a user's, so that no person is in it: the record is in Kafka, at the place that the row names, as long as its
topic keeps it.
"""

import logging
from collections.abc import Callable, Sequence

import pyarrow as pa
from gyre_runtime import instrument
from gyre_runtime.events import Event
from gyre_warehouse.tables import REFUSED, arrow_schema, ensure_table
from pyiceberg.catalog import Catalog

_LOG = logging.getLogger(__name__)
_UNWRITABLE = (pa.ArrowException, ValueError, TypeError, KeyError, AttributeError, OverflowError)
MakeRows = Callable[[Sequence[Event]], pa.Table]


def rows_apart(make: MakeRows, events: Sequence[Event]) -> tuple[list[pa.Table], list[tuple[Event, str]]]:
    """Tables of rows, in the events' order, and the events that make no row, each with its error's class name.

    They are found by halving; nothing is written or logged. Without events `make` is called with none.

    Args:
        make: makes the rows of events of one topic.
        events: of that topic.
    """
    try:
        return [make(events)], []
    except _UNWRITABLE as error:
        if len(events) == 1:
            return [], [(events[0], type(error).__name__)]
    half = len(events) // 2
    (first, unwritable), (second, others) = rows_apart(make, events[:half]), rows_apart(make, events[half:])
    return first + second, unwritable + others


class RefusedRows:
    """Collects events that their table cannot hold; `flush` appends their places to `refused_rows` of their loop."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._waiting: list[tuple[Event, str]] = []

    def add(self, refused: Sequence[tuple[Event, str]]) -> None:
        """Hold events, each with its error's class name, until `flush`; counts and logs each."""
        for event, reason in refused:
            loop = event.topic.partition(".")[0]
            instrument("gyre_archive_refused_rows_total").add(loop=loop, topic=event.topic, reason=reason)
            place = {"topic": event.topic, "partition": event.partition, "offset": event.offset}
            _LOG.error("a table cannot hold an event: it is set aside", extra={**place, "reason": reason})
        self._waiting += refused

    def flush(self) -> None:
        """Append what waits, blocking; what the table holds already, after a crash between two tables, is not repeated.

        Where it raises, all of it waits on.
        """
        for loop in {event.topic.partition(".")[0] for event, _ in self._waiting}:
            own = [each for each in self._waiting if each[0].topic.startswith(f"{loop}.")]
            table = ensure_table(self._catalog, loop, REFUSED)
            places = table.scan(selected_fields=("topic", "kafka_partition", "kafka_offset")).to_arrow().to_pylist()
            held = {(each["topic"], each["kafka_partition"], each["kafka_offset"]) for each in places}
            rows = [
                {
                    "event_id": "",
                    "source": event.source,
                    "event_time": round(event.time * 1e6),
                    "topic": event.topic,
                    "reason": reason,
                    "kafka_partition": event.partition,
                    "kafka_offset": event.offset,
                    "ingest_time": round(event.arrival_time * 1e6),
                }
                for event, reason in own
                if (event.topic, event.partition, event.offset) not in held
            ]
            if rows:
                table.append(pa.Table.from_pylist(rows, arrow_schema(REFUSED)))
        self._waiting.clear()
