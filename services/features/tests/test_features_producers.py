"""Producers without a library of Gyre: each command of docs/producers.md, as it stands, feeds the online store."""

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec
from gyre_core.topics import dead_letter_topic, declared, topic
from gyre_features.online.store import OnlineStore
from gyre_local.testing import eventually
from gyre_runtime.kafka import create_topics, read_records
from redis.asyncio import Redis

Start = Callable[..., Any]
PAGE = Path(__file__).resolve().parents[3] / "docs" / "producers.md"
USERS = {"bash": ["kcat-json", "kcat-protobuf"], "python": ["python-json", "python-protobuf"]}


def blocks(language: str) -> list[str]:
    """The page's blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


async def run(language: str, text: str, folder: Path) -> None:
    """Run a block as a person would, with the environment's Python first on the path."""
    command = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


@pytest.mark.adapter
@pytest.mark.parametrize("language", list(USERS))
async def test_what_the_page_says_feeds_the_store_once(  # noqa: PLR0917 (fixtures)
    language: str, tmp_path: Path, spec: LoopSpec, layout: Layout, kafka: str, redis: Redis, start_process: Start
) -> None:
    """Each block, run twice, gives its user one rating and the film its counts: JSON and protobuf, once by `ce_id`."""
    if language == "bash" and shutil.which("kcat") is None:
        pytest.skip("kcat is not installed: apt-get install kcat")
    await create_topics(kafka, declared(spec))
    start_process("stream")
    for _ in range(2):
        for block in blocks(language):
            text = block.replace("127.0.0.1:17000", kafka).replace("movies.", f"{spec.loop}.")
            await run(language, text, tmp_path)
    store = OnlineStore(redis, spec, layout)
    name = topic(spec.loop, "behavior.interactions")
    places = [(name, number) for number in range(spec.shards.kafka_partitions)]

    async def applied() -> bool:
        (applied_offsets,) = await store.applied_offsets(places)
        return sum(applied_offsets.values()) == 2 * len(USERS[language])

    await eventually(applied, timeout_s=60, message="all records were applied")
    for user in USERS[language]:
        assert len(list(layout.history((await store.read(user, [])).user))) == 1, user
    assert [each async for each in read_records(kafka, dead_letter_topic(name))] == []
