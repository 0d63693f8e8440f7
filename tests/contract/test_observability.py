"""Alert rules, dashboards and scrape configurations follow the catalogue of metrics, and alerts fire when they must."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from gyre_runtime.metrics import METRICS, Metric

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "infra" / "prometheus" / "rules"
CASES = ROOT / "tests" / "contract" / "prometheus" / "rules.yml"
DASHBOARDS = sorted((ROOT / "infra" / "grafana" / "dashboards").glob("*.json"))
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
CATALOGUE = {metric.name: metric for metric in METRICS}
SCRAPED = frozenset({"job", "instance", "le", "__address__"})
"""Labels that Prometheus adds."""


def _alerts() -> dict[str, dict[str, Any]]:
    groups = (group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"])
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def _panels() -> list[dict[str, Any]]:
    return [panel for path in DASHBOARDS for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def _expressions() -> dict[str, str]:
    rules = {name: rule["expr"] for name, rule in _alerts().items()}
    return rules | {
        f"{panel['title']} {target['refId']}": target["expr"] for panel in _panels() for target in panel["targets"]
    }


def _metric(name: str) -> Metric | None:
    return CATALOGUE.get(name) or CATALOGUE.get(re.sub(r"_(bucket|count|sum)$", "", name))


def _promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    assert program, "promtool comes with prometheus: run `make setup`"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


def test_rules_and_scrape_configuration_are_valid() -> None:
    """Prometheus itself accepts every rule and the configuration of the compose stack."""
    for arguments in (
        ("check", "rules", *RULES.glob("*.yml")),
        ("check", "config", "--syntax-only", ROOT / "infra" / "prometheus" / "compose.yml"),
    ):
        done = _promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_must() -> None:
    """Each case of the rules' own tests gives exactly the alerts that it expects."""
    done = _promtool("test", "rules", CASES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_threshold_is_noticed(tmp_path: Path) -> None:
    """The cases fail on rules that say something else, so that the test above means something."""
    changed = (RULES / "gyre.yml").read_text().replace("(gyre_consumer_lag) > 10000", "(gyre_consumer_lag) > 30000")
    (tmp_path / "gyre.yml").write_text(changed)
    cases = yaml.safe_load(CASES.read_text()) | {"rule_files": ["gyre.yml"]}
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(cases))
    done = _promtool("test", "rules", tmp_path / "cases.yml")
    assert done.returncode == 1
    assert "ConsumerLag" in done.stdout + done.stderr


@pytest.mark.parametrize("alert", _alerts())
def test_every_alert_has_a_firing_and_a_quiet_case(alert: str) -> None:
    """No alert is without a case in which it fires and one in which it does not."""
    cases = [
        bool(case["exp_alerts"])
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == alert
    ]
    assert {True, False} <= set(cases)


@pytest.mark.parametrize("alert", _alerts())
def test_every_alert_says_what_to_do(alert: str) -> None:
    """Operators find a section for each alert, and each alert has a severity and a summary."""
    rule = _alerts()[alert]
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"]["summary"]
    assert f"\n### {alert}\n" in (ROOT / "docs" / "operations.md").read_text()


@pytest.mark.parametrize(("where", "expression"), _expressions().items())
def test_every_metric_asked_for_exists(where: str, expression: str) -> None:
    """Rules and panels name metrics of the catalogue, with labels that these have."""
    names = set(re.findall(r"\b(gyre_\w+|up|ALERTS)\b", expression))
    assert names, where
    known = {name: _metric(name) for name in names - {"up", "ALERTS"}}
    assert all(known.values()), f"{where}: {[name for name, metric in known.items() if metric is None]}"
    labels = {label for metric in known.values() if metric for label in metric.labels} | SCRAPED
    if "ALERTS" in names:
        labels |= {"alertname", "alertstate"}
    asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))
    for group in re.findall(r"(?:by|ignoring|on)\s*\(([^)]*)\)", expression):
        asked |= {label.strip() for label in group.split(",")}
    assert asked <= labels, f"{where}: {asked - labels}"


def test_cases_feed_series_that_exist() -> None:
    """The series of the rules' tests are those that processes show, label by label."""
    for test in yaml.safe_load(CASES.read_text())["tests"]:
        for series in test["input_series"]:
            name, _, rest = series["series"].partition("{")
            metric = _metric(name)
            assert metric or name == "up", name
            assert set(re.findall(r"(\w+)=", rest)) <= set(metric.labels if metric else ()) | SCRAPED, series


SHOW_ALL = """
from gyre_runtime import ServiceSettings, instrument, setup_telemetry
from gyre_runtime.metrics import METRICS
from prometheus_client import generate_latest

telemetry = setup_telemetry("contract", ServiceSettings(metrics_listen=""))
for metric in METRICS:
    write = {"counter": "add", "gauge": "set", "histogram": "observe"}[metric.kind]
    getattr(instrument(metric.name), write)(1, **dict.fromkeys(metric.labels, "x"))
print(generate_latest(telemetry.registry).decode())
"""


def test_processes_show_the_names_of_the_catalogue() -> None:
    """On a process's own metrics page each metric has exactly the name that rules and panels ask for."""
    page = subprocess.run(
        [sys.executable, "-c", SHOW_ALL], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    shown = {re.split(r"[{ ]", line)[0] for line in page.splitlines() if not line.startswith("#")}
    expected = {f"{metric.name}_bucket" if metric.kind == "histogram" else metric.name for metric in METRICS}
    assert expected <= shown, expected - shown


def test_dashboards_ask_the_provisioned_source() -> None:
    """Panels have ids of their own and ask a data source that is provisioned under that id."""
    path = ROOT / "infra" / "grafana" / "provisioning" / "datasources" / "prometheus.yaml"
    sources = {source["uid"] for source in yaml.safe_load(path.read_text())["datasources"]}
    panels = _panels()
    assert len({panel["id"] for panel in panels}) == len(panels) > 0
    for panel in panels:
        assert {each["datasource"]["uid"] for each in (panel, *panel["targets"])} <= sources, panel["title"]


def test_every_process_is_scraped() -> None:
    """Prometheus of the compose stack asks each process of the mesh for its metrics, and Triton."""
    scrape = yaml.safe_load((ROOT / "infra" / "prometheus" / "compose.yml").read_text())["scrape_configs"]
    targets = {target for job in scrape for group in job["static_configs"] for target in group["targets"]}
    stay = {name: service for name, service in COMPOSE["services"].items() if "jobs" not in service.get("profiles", [])}
    ours = {name for name, service in stay.items() if service.get("image", "").startswith("gyre/")}
    assert targets == {f"{name}:7001" for name in ours - {"mlflow"}} | {"triton:8002"}
