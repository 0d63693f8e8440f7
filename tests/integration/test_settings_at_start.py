"""What a process says when a file that its settings name cannot be used."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

MOVIES = Path(__file__).parents[2] / "examples/movies/gyre.yaml"
PROCESSES = (
    "gyre_gateway", "gyre_features serve", "gyre_features stream", "gyre_features archive", "gyre_features maintain",
    "gyre_inference", "gyre_trainer", "gyre_trainer maintain", "gyre_deployer", "gyre_monitor",
)  # fmt: skip


def refusal(process: str, **variables: str) -> list[str]:
    """What a process that must not start writes to stderr, without the lines of its log that are no error."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GYRE_")}
    command = [sys.executable, "-m", *process.split()]
    done = subprocess.run(command, env=clean | variables, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    return [line for line in done.stderr.splitlines() if '"level": "INFO"' not in line]


@pytest.mark.parametrize("process", PROCESSES)
def test_a_loop_file_that_is_missing_stops_every_process_in_one_line(process: str, tmp_path: Path) -> None:
    """Each service and job names GYRE_LOOPS, the path and the rule, and shows no traceback."""
    path, folder = tmp_path / "none.yaml", str(tmp_path)
    variables = {"GYRE_LOOPS": str(path), "GYRE_STATE_DIR": folder, "GYRE_WAREHOUSE": folder, "GYRE_ARTIFACTS": folder}
    assert refusal(process, **variables) == [f"GYRE_LOOPS='{path}': cannot be read: No such file or directory"]


def test_a_loop_file_that_breaks_a_rule_is_named_with_its_line(tmp_path: Path) -> None:
    """A gyre.yaml with a mistake names the setting, the line, the field, the value and the rule."""
    path = tmp_path / "bad.yaml"
    path.write_text(MOVIES.read_text().replace("clock: replay", "clock: sundial"))
    assert refusal("gyre_inference", GYRE_LOOPS=str(path)) == [
        f"GYRE_LOOPS='{path}': must follow the rules of gyre.yaml:",
        f"{path}:6: clock = 'sundial': must be 'wall' or 'replay'",
    ]


def test_a_loop_that_is_named_twice_names_both_files(tmp_path: Path) -> None:
    """Two files of one loop are refused by the second, and the first is named."""
    path = tmp_path / "copy.yaml"
    path.write_text(MOVIES.read_text())
    rule = f"the loop 'movies' is already that of {MOVIES}: each loop must be named once"
    assert refusal("gyre_inference", GYRE_LOOPS=f"{MOVIES}:{path}") == [f"GYRE_LOOPS='{path}': {rule}"]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (" \n", "must be JSON with `stable` and `rotating` keys in hexadecimal"),
        ("junk", "must be JSON with `stable` and `rotating` keys in hexadecimal"),
        ('{"stable": "abcd"}', "stable has 2 bytes, must have at least 32"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_key_file_without_keys_stops_the_start(content: str | None, rule: str, tmp_path: Path) -> None:
    """A key file that is blank, junk, too short or missing stops the gateway, and the line shows no key."""
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    variables = {"GYRE_LOOPS": str(MOVIES), "GYRE_PRIVACY_KEY_FILE": str(path)}
    assert refusal("gyre_gateway", **variables) == [f"GYRE_PRIVACY_KEY_FILE='{path}': {rule}"]


@pytest.mark.parametrize("variable", ["GYRE_LISTEN", "GYRE_METRICS_LISTEN"])
def test_an_address_that_is_in_use_stops_the_start_in_one_line(variable: str) -> None:
    """A port that another process has is named with its setting, without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        lines = refusal("gyre_inference", **{"GYRE_LOOPS": str(MOVIES), variable: address})
    foreign = "add_port.cc", '"logger": "aiokafka"'  # what gRPC says of the port, and that no Kafka is there
    own = [line for line in lines if not any(each in line for each in foreign)]
    assert len(own) == 1
    assert own[0].startswith(f"{variable}='{address}': must be an address of this host that is free")


def test_a_key_of_the_monitors_own_that_is_none_stops_it_in_one_line(tmp_path: Path) -> None:
    """The monitor's own key file is named with the folder of its state."""
    (tmp_path / "user-key.json").write_text("junk")
    (line,) = refusal(
        "gyre_monitor", GYRE_LOOPS=str(MOVIES), GYRE_STATE_DIR=str(tmp_path), GYRE_OTLP_LISTEN="127.0.0.1:0"
    )
    assert line.startswith(f"GYRE_STATE_DIR='{tmp_path}': {tmp_path}/user-key.json: must be JSON")
