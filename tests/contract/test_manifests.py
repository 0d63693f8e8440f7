"""The Kubernetes manifests and the compose file are valid, and say the same as the declarations."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "k8s" / "base"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
KUBERNETES_VERSION = "1.31"
OBSERVABILITY = {"grafana", "jaeger", "otel-collector"}


def _documents() -> list[tuple[str, dict[str, Any]]]:
    files = (path for path in sorted(BASE.glob("*.yaml")) if path.name != "kustomization.yaml")
    return [(path.name, each) for path in files for each in yaml.safe_load_all(path.read_text()) if each]


def _containers() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    return [
        (name, document["spec"]["template"]["spec"], container)
        for name, document in _documents()
        if document["kind"] in {"Deployment", "StatefulSet"}
        for container in document["spec"]["template"]["spec"]["containers"]
    ]


@pytest.mark.parametrize(("name", "document"), _documents(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_manifest_is_valid_kubernetes(name: str, document: dict[str, Any]) -> None:
    """Each document of the base follows the schema of its kind, strictly."""
    kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


def test_a_manifest_with_an_unknown_field_is_refused() -> None:
    """The validation that the other test relies on can fail."""
    broken = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"porst": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES_VERSION, strict=True)


def test_the_base_lists_every_manifest() -> None:
    """Nothing lies in the base that kustomize would not apply, and nothing is listed that is not there."""
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(path.name for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")


def test_overlays_name_folders_that_hold_a_kustomization() -> None:
    """Each resource of each overlay is there."""
    overlays = list((ROOT / "k8s" / "overlays").glob("*/kustomization.yaml"))
    assert overlays
    for overlay in overlays:
        for resource in yaml.safe_load(overlay.read_text())["resources"]:
            assert (overlay.parent / resource / "kustomization.yaml").is_file(), resource


@pytest.mark.parametrize(
    ("name", "pod", "container"), _containers(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_container_is_confined_and_probed(name: str, pod: dict[str, Any], container: dict[str, Any]) -> None:
    """Least privilege, resource bounds and probes hold for each container."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


def test_compose_orders_every_start_by_health() -> None:
    """What a service depends on in the compose file exists and is waited for by a condition that can come true."""
    services = COMPOSE["services"]
    for name, service in services.items():
        for dependency, how in service.get("depends_on", {}).items():
            assert dependency in services, f"{name} depends on {dependency}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[dependency], dependency


def test_compose_publishes_on_loopback_only() -> None:
    """No port of the compose stack is reachable from another machine."""
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(str(port).startswith("127.0.0.1:") for port in published)


def test_compose_and_kubernetes_run_the_same_processes() -> None:
    """Each process of the mesh stands in both, with the same image and arguments."""
    compose = {
        name: (service["image"], service.get("command"))
        for name, service in COMPOSE["services"].items()
        if service.get("image", "").startswith("gyre/") and name != "mlflow"
    }
    cluster = {
        container["name"]: (container["image"].removesuffix(":latest"), container.get("args"))
        for _, _, container in _containers()
        if container["image"].startswith("gyre/")
    }
    assert compose == cluster


def test_heavy_observers_stand_behind_a_profile() -> None:
    """Grafana, Jaeger and the Collector start only when their profile is asked for."""
    profiled = {name for name, service in COMPOSE["services"].items() if service.get("profiles") == ["observability"]}
    assert profiled == OBSERVABILITY


def test_only_the_trainer_depends_on_torch() -> None:
    """No other package of the workspace names torch."""
    members = [
        *ROOT.glob("libs/*/pyproject.toml"),
        *ROOT.glob("services/*/pyproject.toml"),
        ROOT / "infra/local/pyproject.toml",
    ]
    with_torch = {path.parent.name for path in members if re.search(r'^\s*"torch\b', path.read_text(), re.MULTILINE)}
    assert with_torch == {"trainer"}
