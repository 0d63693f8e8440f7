"""What repeats an event or a request counts once, and is counted by reason on the stream's metrics page."""

import asyncio
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared, topic
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from gyre_runtime.kafka import Producer, create_topics

SHOWN = "  - {name: shown, kind: decayed_count, scope: item, events: [impression], half_lives: [365d]}\n"
BEGIN = 1_370_000_000.0


def _count_shown(loop_file: Path) -> None:
    loop_file.write_text(loop_file.read_text().replace("features:\n", f"features:\n{SHOWN}", 1))


@pytest.mark.adapter
async def test_repeated_events_and_requests_are_counted_by_reason(
    kafka: str, spec: LoopSpec, loop_file: Path, start_process: Callable[..., Any]
) -> None:
    """An id that comes again is a DUPLICATE, a further impression of one user's request a DUPLICATE_REQUEST."""
    _count_shown(loop_file)
    await create_topics(kafka, declared(spec))
    (port,) = free_ports(1)
    start_process("stream", GYRE_METRICS_LISTEN=f"127.0.0.1:{port}")
    sent = [("e1", "u1", "r1"), ("e1", "u1", "r1"), ("e2", "u1", "r1"), ("e3", "u1", "r1"), ("e4", "u2", "r1")]
    async with Producer(kafka, source="shop") as producer:
        for id_, user, request in sent:
            message = behavior.Impression(
                request_id=request,
                user_id=user,
                item_ids=["i1"],
                shown=1,
                method=behavior.IMPRESSION_METHOD_RANK,
            )
            await producer.send(topic(spec.loop, "behavior.impressions"), message, key=user, id=id_, time=BEGIN)

    async def counted() -> set[str]:
        try:
            page = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/metrics", timeout=5)
        except OSError:
            return set()
        with page:
            lines = page.read().decode().splitlines()
        return {line for line in lines if line.startswith("gyre_features_duplicates_total{")}

    wanted = {
        f'gyre_features_duplicates_total{{loop="{spec.loop}",reason="DUPLICATE"}} 1.0',
        f'gyre_features_duplicates_total{{loop="{spec.loop}",reason="DUPLICATE_REQUEST"}} 2.0',
    }

    async def all_counted() -> bool:
        found = await counted()
        assert found == wanted
        return True

    await eventually(all_counted, timeout_s=60, message="each repeat is counted by its reason")
