"""The processes of the six services, wired to each other and to the infrastructure by `GYRE_*` variables."""

import json
import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from gyre_local import probes
from gyre_local.places import StackDirectories
from gyre_local.ports import Ports
from gyre_local.recipe import Probe, Recipe

MODULES = {
    "gateway": ("gyre_gateway",),
    "features-serve": ("gyre_features", "serve"),
    "features-stream": ("gyre_features", "stream"),
    "features-archive": ("gyre_features", "archive"),
    "features-quality": ("gyre_features", "quality"),
    "features-check": ("gyre_features", "check"),
    "inference": ("gyre_inference",),
    "trainer": ("gyre_trainer",),
    "deployer": ("gyre_deployer",),
    "monitor": ("gyre_monitor",),
}
"""What follows `python -m` for each process."""

WORKERS = frozenset({"features-stream", "features-archive", "features-quality"})
"""The processes that only consume, and serve nothing but their health."""

PEERS = {
    "GYRE_GATEWAY": "gateway",
    "GYRE_FEATURES": "features-serve",
    "GYRE_FEATURES_CHECK": "features-check",
    "GYRE_INFERENCE": "inference",
    "GYRE_TRAINER": "trainer",
    "GYRE_DEPLOYER": "deployer",
    "GYRE_MONITOR": "monitor",
}
"""The process behind each address of a service."""


_ALWAYS = ("GYRE_LOOPS", "GYRE_OTLP")
USES = {
    "gateway": ("GYRE_KAFKA", "GYRE_FEATURES", "GYRE_INFERENCE", "GYRE_PRIVACY_KEY_FILE"),
    "features-serve": ("GYRE_KAFKA", "GYRE_REDIS", "GYRE_ARTIFACTS", "GYRE_PRIVACY_KEY_FILE"),
    "features-stream": ("GYRE_KAFKA", "GYRE_REDIS", "GYRE_WAREHOUSE", "GYRE_PRIVACY_KEY_FILE"),
    "features-archive": ("GYRE_KAFKA", "GYRE_WAREHOUSE", "GYRE_PRIVACY_KEY_FILE"),
    "features-quality": ("GYRE_KAFKA", "GYRE_ARTIFACTS", "GYRE_STATE_DIR", "GYRE_PRIVACY_KEY_FILE"),
    "features-check": ("GYRE_KAFKA", "GYRE_WAREHOUSE"),
    "inference": ("GYRE_KAFKA", "GYRE_TRITON"),
    "trainer": ("GYRE_KAFKA", "GYRE_WAREHOUSE", "GYRE_ARTIFACTS", "GYRE_MLFLOW", "GYRE_STATE_DIR"),
    "deployer": ("GYRE_KAFKA", "GYRE_TRITON", "GYRE_TRITON_REPOSITORY"),
    "monitor": ("GYRE_KAFKA", "GYRE_TRAINER", "GYRE_STATE_DIR", "GYRE_PRIVACY_KEY_FILE"),
}
"""What each process is told of beside itself: what its settings class has, and nothing else."""

SHARED_STATE = ("warehouse", "artifacts")
"""Directories of `var/` that belong to several processes."""


def shared_env(ports: Ports, places: StackDirectories, loops: Sequence[Path]) -> dict[str, str]:
    """The `GYRE_` variables, with values, that say where everything in the stack is: clients may read all of them.

    Each process is given those that it uses (`USES`).
    """
    return {
        "GYRE_LOOPS": os.pathsep.join(str(loop) for loop in loops),
        "GYRE_KAFKA": ports.address("kafka", "broker"),
        "GYRE_REDIS": f"redis://{ports.address('redis', 'server')}/0",
        "GYRE_TRITON": ports.address("triton", "grpc"),
        "GYRE_TRITON_REPOSITORY": str(places.state("triton") / "models"),
        "GYRE_MLFLOW": f"http://{ports.address('mlflow', 'http')}",
        "GYRE_PROMETHEUS": f"http://{ports.address('prometheus', 'http')}",
        "GYRE_OTLP": ports.address("monitor", "otlp"),
        "GYRE_WAREHOUSE": str(places.state("warehouse")),
        "GYRE_ARTIFACTS": str(places.state("artifacts")),
        "GYRE_PRIVACY_KEY_FILE": str(places.state("privacy") / "keys.json"),
        **{variable: ports.address(process, "grpc") for variable, process in PEERS.items()},
    }


def prepare(name: str, places: StackDirectories, ports: Ports, *, loops: Sequence[Path]) -> Recipe:
    """Make the directories of the service process `name` and the recipe that wires it to the others; starts nothing."""
    own = ports.of(name)
    state = places.state(name)
    shared = [places.state(part) for part in SHARED_STATE]
    for directory in (state, *shared, places.state("triton") / "models"):
        directory.mkdir(parents=True, exist_ok=True)
    write_privacy_key(places)
    where = {**shared_env(ports, places, loops), "GYRE_STATE_DIR": str(state)}
    env = {
        **{variable: where[variable] for variable in (*_ALWAYS, *USES[name])},
        "GYRE_LISTEN": ports.address(name, "grpc"),
        "GYRE_METRICS_LISTEN": ports.address(name, "metrics"),
        "GYRE_DRAIN_DELAY_S": "0",  # nothing balances calls between processes here
        "PYTHONUNBUFFERED": "1",
    }
    if "otlp" in own:
        env["GYRE_OTLP_LISTEN"] = ports.address(name, "otlp")
    module, *arguments = MODULES[name]
    return Recipe(
        name=name,
        command=(sys.executable, "-m", module, *arguments),
        directory=state,
        env=env,
        probe=probe(name, ports),
        ports=own,
        start_timeout_s=90,
        stop_timeout_s=25,
    )


def write_privacy_key(places: StackDirectories) -> None:
    """Write the key that ids of users are hashed under, for this user alone, where there is none."""
    file = places.state("privacy") / "keys.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "w", encoding="utf-8") as opened:
            json.dump({"stable": secrets.token_hex(32)}, opened)


def probe(name: str, ports: Ports) -> Probe:
    """Make the probe of a service: its gRPC health; of a worker its metrics page, and that where it serves gRPC."""
    own = ports.of(name)
    if name in WORKERS:
        return partial(probes.worker, ports.host, grpc_port=own["grpc"], metrics_port=own["metrics"])
    return partial(probes.grpc_serving, ports.host, own["grpc"])
