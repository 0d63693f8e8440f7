"""Which events of the stream may enter a loop: declared types, fields and ranges, and times within the bounds."""

from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1 import features_pb2 as events_pb2
from gyre_core.admission import Refusal, refuse_fields, refuse_interaction, refuse_time
from gyre_core.clock import LoopClock
from gyre_core.spec import LoopSpec
from gyre_core.topics import IMPORT_SOURCE
from gyre_runtime.events import Event
from gyre_runtime.fields import field_values


class Admission:
    """Refuses what `gyre.yaml` does not allow. Each topic partition has a clock of its own: see `LoopClock`."""

    def __init__(self, loops: dict[str, LoopSpec]) -> None:
        self._loops = loops
        self._clocks: dict[tuple[str, int], LoopClock] = {}

    def forget(self, topic: str, partition: int) -> None:
        """Begin a partition anew: it was assigned, and is read from where the store stands."""
        self._clocks.pop((topic, partition), None)

    def __call__(self, event: Event) -> Refusal | None:
        """Why an event is refused, or None."""
        spec = self._loops[event.topic.partition(".")[0]]
        message = event.message
        if isinstance(message, behavior.Interaction):
            value = message.value if message.HasField("value") else None
            refusal = refuse_interaction(spec, message.type, value)
            if refusal is not None:
                return refusal
        elif isinstance(message, behavior.ItemChanged):
            return refuse_fields(spec, "item", field_values(message.fields))
        elif isinstance(message, behavior.UserChanged):
            return refuse_fields(spec, "user", field_values(message.fields))
        elif isinstance(message, events_pb2.BatchApplied):
            return None  # the mesh's own, which may come late: what was not acknowledged is sent again
        return self._time(spec, event)

    def _time(self, spec: LoopSpec, event: Event) -> Refusal | None:
        place = (event.topic, event.partition)
        clock = self._clocks.get(place)
        if clock is None:
            clock = self._clocks[place] = LoopClock(spec.clock)
        refusal = refuse_time(spec, clock, event.time)
        if refusal is not None and refusal.reason == "TOO_OLD" and spec.clock == "wall":
            # History is old by nature; an importer sends it in the order of time, and its weight comes decayed.
            refusal = None if event.source == IMPORT_SOURCE else refusal
        if refusal is None:
            clock.observe(event.time)
        return refusal
