"""What `features.applied` says of a batch: described before the script runs, and kept there until Kafka has it."""

from __future__ import annotations

from collections.abc import Sequence

from gyre.events.v1 import features_pb2 as events_pb2
from gyre_runtime.events import Event

from gyre_features.online.script import OUTBOX_TIME, time_of


def described(
    loop: str, layout_hash: str, shard: int, *, fresh: Sequence[Event], count: int
) -> events_pb2.BatchApplied:
    """The message of a batch before it has a number and a time.

    Args:
        loop: its name.
        layout_hash: of the layout.
        shard: the virtual shard.
        fresh: the batch's events beyond the applied offsets, at least one; repeats, too, since ranges are made of them.
        count: how many of them count.
    """
    spans: dict[tuple[str, int], tuple[int, int]] = {}
    newest = float("-inf")
    for event in fresh:
        place = (event.topic, event.partition)
        spans[place] = (spans.get(place, (event.offset, 0))[0], event.offset + 1)
        newest = max(newest, event.time)
    message = events_pb2.BatchApplied(loop=loop, layout=layout_hash, shard=shard, events=count)
    for (topic, partition), (first, end) in spans.items():
        message.ranges.add(topic=topic, partition=partition, first=first, end=end)
    message.newest_event_time.FromMicroseconds(round(newest * 1e6))
    return message


def completed(message: events_pb2.BatchApplied, number: int, applied_time: float) -> events_pb2.BatchApplied:
    """The same message, with the batch's number set, and when the store applied it, unix seconds."""
    message.batch = number
    message.applied_time.FromNanoseconds(int(applied_time * 1e9))
    return message


def restored(number: int, kept: bytes) -> events_pb2.BatchApplied:
    """The message of a batch, from its number and the bytes that the outbox holds of it."""
    return completed(events_pb2.BatchApplied.FromString(kept[OUTBOX_TIME.size :]), number, time_of(kept))


def identity_of(message: events_pb2.BatchApplied) -> str:
    """The CloudEvents id under which a completed batch is published: the same each time that it is."""
    return f"{message.layout}-{message.shard}-{message.batch}-{message.applied_time.ToNanoseconds()}"
