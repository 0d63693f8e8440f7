"""The MLflow tracking server on SQLite, with artifacts in a folder beside it."""

import sys
from functools import partial
from pathlib import Path

from gyre_local import probes
from gyre_local.recipe import Recipe


def prepare(directory: Path, *, host: str, port: int) -> Recipe:
    """Make the artifact folder in `directory`, where the database will lie too, and the recipe; starts nothing."""
    artifacts = directory / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    server = (sys.executable, "-m", "mlflow", "server")
    return Recipe(
        name="mlflow",
        command=(
            *server,
            f"--backend-store-uri=sqlite:///{directory / 'mlflow.db'}",
            f"--artifacts-destination={artifacts}",
            f"--host={host}",
            f"--port={port}",
            "--workers=1",
        ),
        directory=directory,
        env={
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PYTHONUNBUFFERED": "1",
        },
        probe=partial(probes.http_ok, host, port, "/health"),
        ports={"http": port},
        start_timeout_s=300,
    )
