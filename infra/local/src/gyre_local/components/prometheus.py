"""Prometheus from the distribution: scrapes every metrics port, with the rules of infra/prometheus/rules."""

import json
import shutil
from functools import partial
from pathlib import Path

from gyre_local import probes
from gyre_local.failures import LocalStackError
from gyre_local.places import REPOSITORY
from gyre_local.ports import Ports
from gyre_local.recipe import Recipe

RULES = REPOSITORY / "infra" / "prometheus" / "rules"
SCRAPE_INTERVAL = "2s"


def scrape_config(ports: Ports) -> str:
    """The configuration: one job for each process that has a metrics port. JSON, which is YAML."""
    jobs = [
        {"job_name": name, "static_configs": [{"targets": [ports.address(name, "metrics")]}]}
        for name, meanings in ports.processes.items()
        if "metrics" in meanings
    ]
    content = {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": SCRAPE_INTERVAL},
        "rule_files": [str(RULES / "*.yml")],
        "scrape_configs": jobs,
    }
    return json.dumps(content, indent=2) + "\n"


def prepare(directory: Path, ports: Ports) -> Recipe:
    """Write the configuration into `directory` and make the recipe; starts nothing.

    Raises:
        LocalStackError: prometheus is not installed.
    """
    server = shutil.which("prometheus")
    if server is None:
        raise LocalStackError(
            "prometheus is not installed. Remedy: run `make setup`, or `sudo apt-get install -y prometheus`."
        )
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "prometheus.yml"
    config.write_text(scrape_config(ports))
    port = ports.port("prometheus", "http")
    return Recipe(
        name="prometheus",
        command=(
            server,
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'data'}",
            "--storage.tsdb.retention.time=7d",
            f"--web.listen-address={ports.host}:{port}",
            "--log.level=warn",
        ),
        directory=directory,
        probe=partial(probes.http_ok, ports.host, port, "/-/ready"),
        ports=ports.of("prometheus"),
    )
