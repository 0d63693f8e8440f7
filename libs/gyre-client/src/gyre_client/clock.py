"""Marks that set the replay clock of every partition of a loop's behaviour, which no event may move by a leap."""

import uuid
from time import time as wall_time

from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.event_time import in_range
from gyre_core.topics import BEHAVIOR, topic
from gyre_runtime import Invalid, Precondition
from gyre_runtime.kafka import Producer

from gyre_client.known_loops import known_loop
from gyre_client.settings import ClientSettings

_SOURCE = "gyre/clock"


def clock_mark(time: float, *, back: bool = False) -> behavior.ClockMark:
    """The payload of a mark that sets a partition's clock to a time, unix seconds; it sends nothing.

    Without `back` a mark that is before the clock does nothing.
    """
    mark = behavior.ClockMark(back=back)
    mark.clock_time.FromMicroseconds(round(time * 1e6))
    return mark


async def set_clock(settings: ClientSettings, loop: str, time: float, *, back: bool = False) -> None:
    """Write a mark to every partition of a loop's behaviour, and wait until Kafka has them; readers follow later.

    Args:
        settings: uses `kafka`, and `loops` as `known_loop` does.
        loop: its name.
        time: what the clocks are set to, unix seconds.
        back: set also clocks that are past the time; without it those stay.

    Raises:
        Invalid: the loop is not known here (UNKNOWN_LOOP), or nobody would take the mark (TIME_INVALID, IN_THE_FUTURE).
        Precondition: the loop lives on the wall clock (CLOCK_IS_WALL).
        Unavailable: Kafka does not answer.
    """
    spec = known_loop(settings, loop)
    if spec.clock == "wall":
        raise Precondition("CLOCK_IS_WALL", f"{loop}: its clock is the wall's, which nobody sets")
    if not in_range(time):
        raise Invalid("TIME_INVALID", f"time = {time:g}: must be a time from year 1 to 9999")
    if time > wall_time() + spec.events.max_future_s:
        raise Invalid("IN_THE_FUTURE", f"time = {time:g}: must be at most {spec.events.max_future} from now")
    async with Producer(settings.kafka, source=_SOURCE) as producer:
        for suffix in BEHAVIOR:
            mark = clock_mark(time, back=back)
            await producer.send_to_partitions(topic(loop, suffix), mark, time=time, id=uuid.uuid4().hex)
