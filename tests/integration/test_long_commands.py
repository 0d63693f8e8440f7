"""Long commands whose output is no terminal print a plain line every ten seconds, which are shortened here."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gyre_local.testing import eventually_sync

MOVIES = Path(__file__).parents[2] / "examples/movies/gyre.yaml"
SHORTENED = "import runpy, sys; import gyre_core.heartbeat as heartbeat; heartbeat.INTERVAL_S = 0.01; "
COMMAND = f"{SHORTENED} from gyre_client.cli import main; main()"
JOB = f"{SHORTENED} del sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__')"


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("code", "words", "line"),
    [
        (COMMAND, "train shop --watch", "run of shop: starting"),
        (COMMAND, "forget shop u1", "features: no answer yet"),
        (COMMAND, "features check shop", "parity of shop: replaying the warehouse"),
        (COMMAND, "dlq replay shop", "dead letters of shop: 0 replayed"),
        (JOB, "gyre_features backfill", "features backfill: under way"),
        (JOB, "gyre_features maintain", "features maintain: under way"),
        (JOB, "gyre_trainer join movies joined.parquet", "trainer join: under way"),
        (JOB, "gyre_trainer maintain", "trainer maintain: under way"),
        (JOB, "gyre_deployer maintain", "deployer maintain: under way"),
        (JOB, "gyre_monitor maintain", "monitor maintain: under way"),
        (JOB, "gyre_privacy search movies u1", "privacy search: under way"),
    ],
)
def test_a_long_command_says_that_it_is_under_way(
    code: str, words: str, line: str, tmp_path: Path, silent: str
) -> None:
    """Each command and job says on stderr what it does, again and again, as long as it waits for others."""
    peers = {f"GYRE_{name}": silent for name in ("KAFKA", "TRAINER", "FEATURES", "FEATURES_CHECK")}
    folders = {f"GYRE_{name}": str(tmp_path) for name in ("STATE_DIR", "WAREHOUSE", "ARTIFACTS")}
    own = {**peers, **folders, "GYRE_REDIS": f"redis://{silent}", "GYRE_LOOPS": str(MOVIES)}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GYRE_")}
    log, command = tmp_path / "log", [sys.executable, "-c", code, *words.split()]
    with log.open("wb") as errors:
        started = subprocess.Popen(command, env=clean | own, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=errors)
    try:
        eventually_sync(lambda: f" s] {line}\n" in log.read_text(), timeout_s=30, message=f"a line of {words}")
    finally:
        started.kill()
        started.wait()
