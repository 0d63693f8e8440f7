"""What is declared once is said the same everywhere: settings, ports, commands and links in files of all kinds."""

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import typer
import yaml
from gyre_client import ClientSettings
from gyre_client.cli import app
from gyre_core.keyring import Keyring
from gyre_features.__main__ import JOBS
from gyre_local.components import services
from gyre_local.places import StackDirectories
from gyre_local.ports import PORTS_FILE, load_ports
from gyre_runtime import load_settings
from gyre_runtime.environment import TOLERATED
from gyre_runtime.settings import (
    PARTS,
    MlflowSettings,
    RedisSettings,
    Settings,
    TritonSettings,
)
from typer.core import TyperGroup

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
IMAGE = dict(re.findall(r"(GYRE_[A-Z_]+)=(\S+)", (ROOT / "Dockerfile").read_text()))
PORTS = load_ports(PORTS_FILE, offset=0)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = _generator()
SETTINGS: dict[str, type[Settings]] = dict(GENERATOR.process_settings())
ADDRESSES = {"kafka", "triton", "gateway", "features", "features_check", "inference", "trainer", "deployer", "monitor"}
PLACES = ADDRESSES | {"redis", "mlflow", "prometheus", "warehouse", "artifacts", "state_dir", "triton_repository"}
"""Settings that say where something is: a process is given those that it has, and no others."""


KEY_FILE, TOKEN_FILE = Path("/etc/gyre/privacy/keys.json"), Path("/etc/gyre/secrets/token")


def _resolved(value: object) -> str:
    """A value of the compose file with the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))


def _compose() -> dict[str, dict[str, str]]:
    """The environment of each process and job of the mesh in the compose file."""
    entries = COMPOSE["services"].items()
    return {
        name: {variable: _resolved(value) for variable, value in entry["environment"].items()}
        for name, entry in entries
        if "GYRE_LOOPS" in entry.get("environment", {})
    }


def _cluster() -> dict[str, dict[str, str]]:
    """The environment that the base gives to each process and job of the mesh on Kubernetes."""
    maps = {
        each["name"]: _environment(ROOT / "k8s" / "base" / file)
        for each in yaml.safe_load((ROOT / "k8s" / "base" / "kustomization.yaml").read_text())["configMapGenerator"]
        for file in each["envs"]
    }
    found = {}
    for name, container in _containers().items():
        names = [each["configMapRef"]["name"] for each in container["envFrom"]]
        own = {each["name"]: each["value"] for each in container.get("env", [])}
        found[name] = {variable: value for each in names for variable, value in maps[each].items()} | own
    return found


def _environment(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if not line.startswith("#"))


def _containers() -> dict[str, dict[str, Any]]:
    """The container of each process and job of the mesh on Kubernetes, by name."""
    files = sorted((ROOT / "k8s" / "base").glob("*.yaml"))
    documents = [each for path in files for each in yaml.safe_load_all(path.read_text()) if each]
    specs = [each["spec"] for each in documents if each["kind"] == "Deployment"]
    specs += [each["spec"]["jobTemplate"]["spec"] for each in documents if each["kind"] == "CronJob"]
    containers = [container for spec in specs for container in spec["template"]["spec"]["containers"]]
    return {each["name"]: each for each in containers if each["image"].startswith("gyre/")}


def _local(tmp: Path) -> dict[str, dict[str, str]]:
    """The environment that the local stack gives to each process."""
    places = StackDirectories(tmp)
    recipes = [services.prepare(name, places, PORTS, loops=[Path("gyre.yaml")]) for name in services.MODULES]
    return {
        each.name: {name: text for name, text in each.env.items() if name != "PYTHONUNBUFFERED"} for each in recipes
    }


def test_every_process_has_settings() -> None:
    """Each process and each job is known to the reference by a settings class of its own."""
    assert services.MODULES.keys() <= SETTINGS.keys()
    assert {f"features-{name}" for name in JOBS} <= SETTINGS.keys()


@pytest.mark.parametrize("kind", ["compose", "kubernetes", "local"])
def test_a_process_is_given_what_it_uses_alone(kind: str, tmp_path: Path) -> None:
    """Wherever a process runs it starts, is told of every place that it uses, and of nothing that it does not."""
    given = {"compose": _compose, "kubernetes": _cluster, "local": lambda: _local(tmp_path)}[kind]()
    assert services.MODULES.keys() <= given.keys()
    for name, environ in given.items():
        cls = SETTINGS[name]
        load_settings(cls, environ if kind == "local" else IMAGE | environ)
        own = {f"GYRE_{field.upper()}" for field in cls.model_fields}
        assert {f"GYRE_{place.upper()}" for place in PLACES & cls.model_fields.keys()} <= environ.keys(), name
        shared = {"GYRE_LOOPS", "GYRE_OTLP", "GYRE_TRACE_RATIO", "GYRE_LOG_LEVEL"}  # what a job passes over
        assert environ.keys() <= own | shared, name


@pytest.mark.parametrize("name", _compose())
def test_compose_names_hosts_that_exist(name: str) -> None:
    """Each address that a process of the compose file is given is one of its services; it listens for all."""
    settings = load_settings(SETTINGS[name], IMAGE | _compose()[name])
    addresses = {getattr(settings, field) for field in ADDRESSES & type(settings).model_fields.keys()}
    assert {address.rpartition(":")[0] for address in addresses} <= COMPOSE["services"].keys()
    assert getattr(settings, "listen", "0.0.0.0:7000") == "0.0.0.0:7000"


@pytest.mark.parametrize("name", _containers())
def test_kubernetes_gives_each_process_settings_that_it_accepts(name: str) -> None:
    """A process on Kubernetes listens on its container's ports, and accepts the settings of the components, too."""
    cls, environ = SETTINGS[name], IMAGE | _cluster()[name]
    settings: Any = load_settings(cls, environ)
    listening = {
        getattr(settings, field) for field in {"listen", "metrics_listen", "otlp_listen"} & cls.model_fields.keys()
    }
    ports = {port["containerPort"] for port in _containers()[name].get("ports", [])}
    assert ports <= {int(address.rpartition(":")[2]) for address in listening}
    settings = load_settings(cls, environ | _literals("secured") | _literals("privacy"))
    assert getattr(settings, "tls_require_client", True)
    assert getattr(settings, "token_file", TOKEN_FILE) == TOKEN_FILE
    assert getattr(settings, "privacy_key_file", KEY_FILE) == KEY_FILE


def _literals(component: str) -> dict[str, str]:
    """The settings that a component of Kubernetes adds."""
    content = yaml.safe_load((ROOT / "k8s" / "components" / component / "kustomization.yaml").read_text())
    return dict(literal.split("=", 1) for literal in content["configMapGenerator"][0]["literals"])


def test_compose_and_kubernetes_agree_on_addresses() -> None:
    """Processes find each other under the same names in both."""
    own = {"GYRE_KAFKA_REPLICATION", "GYRE_LOOPS", "GYRE_TRACE_RATIO", "GYRE_LOG_LEVEL", "GYRE_OTLP"}
    cluster = {name: environ | _privacy_of(name) for name, environ in _cluster().items()}
    for name, environ in _compose().items():
        assert environ.keys() - own == cluster[name].keys() - own, name
        assert {each: environ[each] for each in environ.keys() - own} == {
            each: cluster[name][each] for each in environ.keys() - own
        }, name


def _privacy_of(name: str) -> dict[str, str]:
    """What the component `privacy` gives to a process or job on Kubernetes."""
    content = yaml.safe_load((ROOT / "k8s" / "components" / "privacy" / "kustomization.yaml").read_text())
    is_patched = any(re.fullmatch(each["target"]["name"], name) for each in content["patches"])
    return _literals("privacy") if is_patched else {}


def test_the_key_file_is_given_to_whoever_hashes_ids(tmp_path: Path) -> None:
    """In containers, on Kubernetes and locally each process and job that has the setting gets the file, alone."""
    variable, folder = "GYRE_PRIVACY_KEY_FILE", str(KEY_FILE.parent)
    using = {name for name, cls in SETTINGS.items() if "privacy_key_file" in cls.model_fields}
    compose, cluster = _compose(), _containers()
    assert {"features-serve", "features-stream", "features-archive", "features-backfill", "monitor"} <= using
    assert {name for name, environ in compose.items() if variable in environ} == using & compose.keys()
    assert {name for name in cluster if _privacy_of(name)} == using & cluster.keys()
    local = _local(tmp_path)
    assert {name for name, environ in local.items() if variable in environ} == using & local.keys()
    assert using <= compose.keys() & cluster.keys()
    for name in using:
        assert compose[name][variable] == str(KEY_FILE)
        assert f"privacy:{folder}:ro" in COMPOSE["services"][name]["volumes"], name
    for name in ("mount", "mount-job"):
        patches = yaml.safe_load((ROOT / "k8s" / "components" / "privacy" / f"{name}.yaml").read_text())
        mounted = [each["value"] for each in patches if each["path"].endswith("/volumeMounts/-")]
        assert mounted == [{"name": "privacy", "mountPath": folder, "readOnly": True}]


def test_compose_makes_the_key_with_its_first_start(tmp_path: Path) -> None:
    """The service that prepares the volumes writes a key that can be read, for its owner alone, and keeps it after."""
    entry, keys = COMPOSE["services"]["volumes"], tmp_path / "privacy" / "keys.json"
    keys.parent.mkdir()
    script = entry["command"][0].replace("$$", "$").replace("/v/", f"{tmp_path}/").replace(" /v\n", f" {tmp_path}\n")
    made = []
    for _ in range(2):
        whole = f"chown() {{ :; }}\n{script}"
        subprocess.run([*entry["entrypoint"], whole], check=True, timeout=30)
        made.append(Keyring.from_file(keys).token("u1", domain="user"))
    assert made[0] == made[1]
    assert keys.stat().st_mode & 0o777 == 0o400
    assert len(json.loads(keys.read_text())["stable"]) == 64


def test_every_variable_that_a_page_names_exists() -> None:
    """A `GYRE_` variable in a guide, the Makefile or a script is one that a process or the local stack reads."""
    classes = [*SETTINGS.values(), *PARTS]
    known = {f"GYRE_{field.upper()}" for cls in classes for field in cls.model_fields} | TOLERATED.keys()
    files = [*PAGES, ROOT / "Makefile", ROOT / "Dockerfile", ROOT / "docker-compose.yml"]
    files += [path for folder in ("infra", "k8s", "examples") for path in (ROOT / folder).rglob("*.y*ml")]
    files += [ROOT / "infra" / "local" / "README.md", *(ROOT / "infra" / "container").iterdir()]
    unknown = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in re.findall(r"\bGYRE_[A-Z_]*[A-Z]\b", path.read_text())
        if name not in known
    }
    assert not unknown


def test_the_reference_is_current() -> None:
    """The pages of docs/reference are what the declarations say now."""
    assert GENERATOR.stale() == []


def test_a_stale_reference_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The check finds a page that says something else, one that is missing, and a file that nothing writes."""
    monkeypatch.setattr(GENERATOR, "REFERENCE", tmp_path)
    for name, write in GENERATOR.PAGES.items():
        (tmp_path / name).write_text(write())
    assert GENERATOR.stale() == []
    (tmp_path / "keys.md").write_text("other")
    (tmp_path / "ports.md").unlink()
    (tmp_path / "stray.md").touch()
    assert GENERATOR.stale() == ["keys.md", "ports.md", "stray.md"]


def test_the_readme_names_the_ports() -> None:
    """The README's table of services and its sentence on the infrastructure give the ports of ports.toml."""
    text = (ROOT / "README.md").read_text()
    table = text.partition("## Services")[2].partition("\n\n")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    processes = {name for name, meanings in PORTS.processes.items() if "grpc" in meanings} - {"triton"}
    assert {row[0] for row in rows} == processes
    for name, _, _, grpc, metrics in rows:
        assert int(metrics) == PORTS.port(name, "metrics"), name
        assert not grpc or int(grpc) == PORTS.port(name, "grpc"), name
    for title, name, meaning in (
        ("Kafka", "kafka", "broker"),
        ("Redis", "redis", "server"),
        ("Triton", "triton", "http"),
        ("Prometheus", "prometheus", "http"),
        ("MLflow", "mlflow", "http"),
    ):
        assert f"{title} {PORTS.port(name, meaning)}" in text


def test_defaults_run_the_local_stack() -> None:
    """Without any variable a process finds the others where ports.toml puts them."""
    settings = ClientSettings()
    for name in ("gateway", "inference", "trainer", "deployer", "monitor"):
        assert getattr(settings, name) == PORTS.address(name, "grpc")
    assert settings.features == PORTS.address("features-serve", "grpc")
    assert settings.kafka == PORTS.address("kafka", "broker")
    assert RedisSettings().redis == f"redis://{PORTS.address('redis', 'server')}/0"
    assert TritonSettings().triton == PORTS.address("triton", "grpc")
    assert MlflowSettings().mlflow == f"http://{PORTS.address('mlflow', 'http')}"
    assert settings.prometheus == f"http://{PORTS.address('prometheus', 'http')}"


def _make_help() -> str:
    """What `make help` prints where its output is no terminal."""
    # A make that runs these tests would have this one say where it is.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(["make", "help"], cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout


def test_the_help_is_readable_without_a_terminal() -> None:
    """Every target is listed without colours, in 80 columns, and what each does begins in one column."""
    lines = _make_help().splitlines()
    assert "\x1b" not in "".join(lines)
    assert max(map(len, lines)) <= 80
    columns = {len(re.match(r" {2}[a-z-]* +", line)[0]) for line in lines}  # type: ignore[index]
    assert len(columns) == 1, columns
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {line.split()[0] for line in lines if line[2] != " "} == set(phony.split())


def test_the_help_lists_what_the_guides_name() -> None:
    """Each `make` target that a guide names is one that `make help` lists."""
    listed = set(re.findall(r"^ {2}([a-z-]+)", _make_help(), re.MULTILINE))
    named = {
        name for path in PAGES for name in re.findall(r"(?:`|^    )make ([a-z-]+)", path.read_text(), re.MULTILINE)
    }
    assert {
        "setup",
        "demo",
        "up",
        "down",
        "status",
        "logs",
        "test",
        "lint",
        "types",
        "proto",
        "bench",
        "help",
    } <= listed
    assert named <= listed, named - listed


def test_the_command_line_has_what_the_guides_name() -> None:
    """Each `gyre` command that a guide names exists."""
    root = cast("TyperGroup", typer.main.get_command(app))
    groups = {name: command for name, command in root.commands.items() if isinstance(command, TyperGroup)}
    listed = root.commands.keys() - groups.keys()
    listed |= {f"{name} {each}" for name, group in groups.items() for each in group.commands}
    text = "\n".join(path.read_text() for path in PAGES)
    command = rf"(?:{'|'.join(groups)}) [a-z]+|[a-z]+"
    named = re.findall(rf"(?:`|^    )(?:\.venv/bin/)?gyre ({command})", text, re.MULTILINE)
    assert len(named) > 10
    assert set(named) <= listed


def test_links_between_pages_lead_somewhere() -> None:
    """A relative link in a guide names a file that exists."""
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"


def test_every_decision_is_listed() -> None:
    """The index of decisions and the pages are the same."""
    folder = ROOT / "docs" / "adr"
    listed = set(re.findall(r"\]\((\d{4}-[a-z0-9-]+\.md)\)", (folder / "README.md").read_text()))
    assert listed == {path.name for path in folder.glob("0*.md")}
