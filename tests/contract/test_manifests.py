"""The Kubernetes manifests and the compose file are valid, and say the same as the declarations."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from gyre_features.__main__ import JOBS
from gyre_local.components import kafka
from gyre_runtime.health import LIVENESS

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "k8s" / "base"
COMPONENTS = sorted((ROOT / "k8s" / "components").glob("*/kustomization.yaml"))
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


def test_overlays_and_components_name_what_is_there() -> None:
    """Each folder, file and patched object that an overlay or a component names exists."""
    names = {(document["kind"], document["metadata"]["name"]) for _, document in _documents()}
    kustomizations = [*(ROOT / "k8s").glob("overlays/*/kustomization.yaml"), *COMPONENTS]
    assert len(kustomizations) >= 4
    for path in kustomizations:
        content = yaml.safe_load(path.read_text())
        for resource in [*content.get("resources", []), *content.get("components", [])]:
            target = path.parent / resource
            assert target.is_file() or (target / "kustomization.yaml").is_file(), f"{path}: {resource}"
        for patch in content.get("patches", []):
            kind, pattern = patch["target"]["kind"], patch["target"]["name"]
            for alternative in _alternatives(pattern):
                assert any(each == kind and re.fullmatch(alternative, name) for each, name in names), alternative
            assert "patch" in patch or (path.parent / patch["path"]).is_file(), path


def _alternatives(pattern: str) -> list[str]:
    """The names that a pattern such as `a|b-(c|d)` stands for, one by one."""
    parts = re.split(r"\|(?![^(]*\))", pattern)
    found = []
    for part in parts:
        group = re.search(r"\(([^)]*)\)", part)
        found += [part.replace(group[0], each) for each in group[1].split("|")] if group else [part]
    return found


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: it would render the overlays")
@pytest.mark.parametrize("overlay", sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir()))
def test_overlays_render(overlay: str) -> None:
    """Kustomize renders each overlay, and what it renders is valid and leaves nothing to be filled in."""
    command = ["kubectl", "kustomize", str(ROOT / "k8s" / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    documents = [each for each in yaml.safe_load_all(done.stdout) if each]
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
        assert document["kind"] in {"Namespace", "StorageClass"} or document["metadata"]["namespace"] == "gyre"
    generated = {each["metadata"]["name"] for each in documents if each["kind"] == "ConfigMap"}
    used = set(re.findall(r"name: (gyre-[a-z]+-[a-z0-9]{10})\b", done.stdout))
    assert used == generated


def test_scheduled_jobs_are_what_the_service_does_once() -> None:
    """A CronJob never runs twice at a time, ends, is confined as a process is, and does a job of its image."""
    jobs = [document["spec"] for _, document in _documents() if document["kind"] == "CronJob"]
    assert len(jobs) == 2
    for spec in jobs:
        assert spec["concurrencyPolicy"] == "Forbid"
        assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] > 0
        pod = spec["jobTemplate"]["spec"]["template"]["spec"]
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["args"][0] in JOBS
        entry = COMPOSE["services"][container["name"]]
        assert (entry["command"], entry["profiles"]) == (container["args"], ["jobs"])


@pytest.mark.parametrize(
    ("name", "pod", "container"), _containers(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_container_is_confined_and_probed(name: str, pod: dict[str, Any], container: dict[str, Any]) -> None:
    """Least privilege, resource bounds and probes hold for each container."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod.get("enableServiceLinks") is False
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"].get("readOnlyRootFilesystem", False) is container["image"].startswith("gyre/")
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


def test_every_object_carries_the_label_of_the_mesh() -> None:
    """Whatever the base, a component or an overlay makes is found by its label, generated ConfigMaps included."""
    label = ("app.kubernetes.io/part-of", "gyre")
    for name, document in _documents():
        assert label in document["metadata"].get("labels", {}).items(), f"{name}: {document['metadata']['name']}"
        for template in _templates(document):
            assert label in template["metadata"]["labels"].items(), name
    folders = [ROOT / "k8s", ROOT / "examples"]
    for path in (path for folder in folders for path in folder.rglob("kustomization.yaml")):
        content = yaml.safe_load(path.read_text())
        for generator in content.get("configMapGenerator", []):
            labels = content.get("generatorOptions", {}) | generator.get("options", {})
            assert generator.get("behavior") == "merge" or label in labels["labels"].items(), path
    (storage,) = yaml.safe_load_all((ROOT / "k8s" / "components" / "object-store" / "storage-class.yaml").read_text())
    assert label in storage["metadata"]["labels"].items()


def _templates(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of a document."""
    spec = document.get("spec", {})
    found = [spec.get("template"), spec.get("jobTemplate", {}).get("spec", {}).get("template")]
    return [each for each in found if each]


def test_every_pod_is_free_of_service_links() -> None:
    """No pod, a job's included, gets the variables that Kubernetes makes of the Services of its namespace."""
    pods = [template["spec"] for _, document in _documents() for template in _templates(document)]
    assert pods
    assert all(pod.get("enableServiceLinks") is False for pod in pods)


def test_every_port_says_its_protocol() -> None:
    """A port without protocol is defaulted on the server, where a later server-side apply finds a conflict."""
    ports = [port for _, document in _documents() for port in _ports(document)]
    assert len(ports) > 30
    assert all(port.get("protocol") == "TCP" for port in ports), ports


def _ports(node: Any) -> list[dict[str, Any]]:
    """Every entry of every list `ports` below a node."""
    if isinstance(node, list):
        return [port for each in node for port in _ports(each)]
    if not isinstance(node, dict):
        return []
    own = node["ports"] if isinstance(node.get("ports"), list) else []
    return [*own, *(port for each in node.values() for port in _ports(each))]


def test_a_pod_lives_while_what_it_needs_is_away() -> None:
    """Startup and liveness ask whether the process lives, readiness alone whether it can answer."""
    for name, _, container in _containers():
        if not container["image"].startswith("gyre/") or name == "features-quality.yaml":
            continue
        for probe in ("startupProbe", "livenessProbe"):
            assert container[probe]["grpc"] == {"port": 7000, "service": LIVENESS}, f"{name}: {probe}"
        assert container["readinessProbe"]["grpc"] == {"port": 7000}, name
    patches = yaml.safe_load((ROOT / "k8s" / "components" / "secured" / "probe.yaml").read_text())
    replaced = {patch["path"].rpartition("/")[2]: patch["value"] for patch in patches}
    assert replaced["startupProbe"]["tcpSocket"] == replaced["livenessProbe"]["tcpSocket"] == {"port": "grpc"}
    assert "exec" in replaced["readinessProbe"]


def test_probes_and_services_name_ports_of_the_container() -> None:
    """Each port that a probe or a Service asks is one that the container declares."""
    pods = {container["name"]: container for _, _, container in _containers()}
    services = [document for _, document in _documents() if document["kind"] == "Service"]
    assert services
    for service in services:
        declared = {port["name"] for port in pods[service["spec"]["selector"]["app.kubernetes.io/name"]]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= declared
    for name, container in pods.items():
        declared = {port["name"] for port in container["ports"]} | {
            port["containerPort"] for port in container["ports"]
        }
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            (action,) = [each for key, each in container[probe].items() if key in {"grpc", "httpGet", "tcpSocket"}]
            assert action["port"] in declared, f"{name}: {probe}"


def test_every_deployment_survives_a_drain() -> None:
    """Each Deployment has a disruption budget, and an autoscaler alone decides on replicas where there is one."""
    by_kind: dict[str, dict[str, dict[str, Any]]] = {}
    for _, document in _documents():
        by_kind.setdefault(document["kind"], {})[document["metadata"]["name"]] = document.get("spec", {})
    budgets, scalers = by_kind["PodDisruptionBudget"], by_kind["HorizontalPodAutoscaler"]
    assert budgets.keys() == by_kind["Deployment"].keys()
    assert {"gateway", "features-serve", "inference"} <= scalers.keys()
    for name, spec in by_kind["Deployment"].items():
        assert budgets[name]["selector"] == spec["selector"]
        # A pod that is not ready blocks every drain otherwise.
        assert budgets[name].get("unhealthyPodEvictionPolicy") == "AlwaysAllow", name
        assert ("replicas" in spec) is (name not in scalers), name
    for name, spec in scalers.items():
        assert spec["scaleTargetRef"]["name"] == name
        assert by_kind["Deployment"][name].get("strategy", {}).get("type") != "Recreate", name
    for name, spec in by_kind["Deployment"].items():
        spread = spec["template"]["spec"].get("topologySpreadConstraints", [])
        several = name in scalers or spec.get("replicas", 1) > 1
        wanted = ["topology.kubernetes.io/zone", "kubernetes.io/hostname"] if several else []
        assert [each["topologyKey"] for each in spread] == wanted, name
        assert all(each["labelSelector"] == spec["selector"] for each in spread), name


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
        if service.get("image", "").startswith("gyre/")
        and name != "mlflow"
        and "jobs" not in service.get("profiles", [])
    }
    cluster = {
        container["name"]: (container["image"].removesuffix(":latest"), container.get("args"))
        for _, _, container in _containers()
        if container["image"].startswith("gyre/")
    }
    assert compose == cluster


def test_compose_confines_every_process() -> None:
    """Each process of the mesh runs read-only, without capabilities, and is asked for its health if it stays."""
    for name, service in COMPOSE["services"].items():
        if service.get("image", "").startswith("gyre/") and name != "mlflow":
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            if "jobs" not in service.get("profiles", []):
                assert service["healthcheck"]["test"][:2] == ["CMD", "gyre-probe"], name
            assert "environment" in service, name


def test_versions_are_the_same_everywhere() -> None:
    """The local stack, the compose file, the manifests and the images use the same Kafka, Triton and MLflow."""
    images = {service.get("image") for service in COMPOSE["services"].values()}
    assert f"apache/kafka:{kafka.VERSION}" in images
    triton = next(container["image"] for name, _, container in _containers() if name == "triton.yaml")
    assert triton in images
    locked = {
        package["name"]: package["version"] for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    }
    assert f"ARG MLFLOW_VERSION={locked['mlflow']}\n" in (ROOT / "infra" / "mlflow" / "Dockerfile").read_text()
    image = re.search(r"ARG PYTHON_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text())
    assert image
    assert image[1].startswith(f"python:{(ROOT / '.python-version').read_text().strip()}")


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
