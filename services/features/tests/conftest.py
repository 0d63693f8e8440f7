"""A small loop, its events, and the processes of the service under test."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec, parse_loop

SPEC = """
version: 1
loop: {loop}
clock: replay
events:
  interactions:
    rating: {{value: {{min: 0, max: 10}}}}
items:
  fields:
    genres: {{kind: categories, values: [action, drama, comedy]}}
    price: {{kind: number}}
features:
  - {{name: popular, kind: decayed_count, scope: item, events: [rating], half_lives: [1d, 7d]}}
  - {{name: taste, kind: affinity, scope: user, field: genres, events: [rating], half_lives: [30d]}}
  - {{name: seen, kind: history, scope: user, events: [rating], length: 5}}
training:
  label: {{events: [rating], attribution_window: 30m}}
serving: {{fallback_feature: popular_7d, recommend: {{genre_field: genres}}}}
shards: {{kafka_partitions: 2, online_shards: {shards}}}
"""


def spec_of(loop: str, *, shards: int = 1) -> LoopSpec:
    """The test loop under a name."""
    return parse_loop(SPEC.format(loop=loop, shards=shards), source="test")


@pytest.fixture
def sharded(loop_name: str) -> Callable[[int], LoopSpec]:
    """The test's loop with a number of virtual shards."""
    return lambda shards: spec_of(loop_name[:31].strip("-"), shards=shards)


@pytest.fixture
def spec(loop_name: str) -> LoopSpec:
    """A loop that no other test uses."""
    return spec_of(loop_name[:31].strip("-"))


@pytest.fixture
def layout(spec: LoopSpec) -> Layout:
    """Its layout."""
    return Layout.compile(spec)


class Started(subprocess.Popen[bytes]):
    """A process of the service under test, and the file with what it logs."""

    def __init__(self, name: str, env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            super().__init__([sys.executable, "-m", "gyre_features", name], env=env, stdout=output, stderr=output)


Start = Callable[..., Started]


@pytest.fixture
def start_process(tmp_path: Path, spec: LoopSpec, kafka: str, redis_url: str) -> Iterator[Start]:
    """Start a process of the service on the session's Kafka and Redis; it is ended with the test."""
    file = tmp_path / "gyre.yaml"
    file.write_text(SPEC.format(loop=spec.loop, shards=spec.shards.online_shards))
    started: list[Started] = []

    def start(name: str, **env: str) -> Started:
        settings = {
            "GYRE_LOOPS": str(file),
            "GYRE_KAFKA": kafka,
            "GYRE_REDIS": redis_url,
            "GYRE_WAREHOUSE": str(tmp_path / "warehouse"),
            "GYRE_STATE_DIR": str(tmp_path / "state"),
            "GYRE_LISTEN": "127.0.0.1:0",
            "GYRE_METRICS_LISTEN": "127.0.0.1:0",
        }
        clean = {key: value for key, value in os.environ.items() if not key.startswith("GYRE_")}
        process = Started(name, {**clean, **settings, **env}, tmp_path / f"{name}-{len(started)}.log")
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
