"""NVIDIA Triton from the nvidia-pytriton wheel, with the repository's own `onnxruntime` Python-based backend.

Triton's Python side needs NumPy below 2, so it lives in an environment of its own under the download cache.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gyre_local import probes
from gyre_local.failures import LocalStackError
from gyre_local.places import REPOSITORY, cache_dir, exclusive
from gyre_local.recipe import Recipe

PYTRITON = "nvidia-pytriton==0.7.0"
RUNTIME = ("onnxruntime==1.19.2", "numpy<2")
"""NVIDIA's container of the same Triton (24.10) carries ONNX Runtime 1.19."""
PYTHON = "3.11"
BACKENDS = REPOSITORY / "infra" / "triton" / "backends"
CACHE_BYTES = 64 * 2**20
_LIBPYTHON = f"libpython{PYTHON}.so.1.0"


@dataclass(frozen=True)
class TritonAddress:
    """Where one Triton listens."""

    host: str
    http: int
    grpc: int
    metrics: int


def install() -> Path:
    """Make Triton's environment and return its directory; quick when it is done.

    Raises:
        LocalStackError: a package cannot be fetched.
    """
    home = cache_dir() / f"triton-{PYTRITON.partition('==')[2]}"
    packages = site_packages(home)
    done = home / "complete"
    with exclusive(cache_dir() / "triton.lock"):
        if not done.exists():
            uv = find_uv()
            _run(uv, "venv", "--quiet", "--clear", "--python", _python(), str(home))
            _run(uv, "pip", "install", "--quiet", "--python", str(home), "--no-deps", PYTRITON)
            _run(uv, "pip", "install", "--quiet", "--python", str(home), *RUNTIME)
            stub = packages / "pytriton/tritonserver/python_backend_stubs" / PYTHON / "triton_python_backend_stub"
            python_backend = packages / "pytriton/tritonserver/backends/python"
            shutil.copy2(stub, python_backend / stub.name)
            for program in (python_backend / stub.name, packages / "pytriton/tritonserver/bin/tritonserver"):
                program.chmod(0o755)
            done.touch()
    return home


def site_packages(home: Path) -> Path:
    """Where the packages of the environment `home` lie."""
    return home / "lib" / f"python{PYTHON}" / "site-packages"


def prepare(directory: Path, address: TritonAddress, *, repository: Path | None = None) -> Recipe:
    """Lay out the backend folder in `directory` and make the recipe; starts nothing.

    Models are read from `repository`, by default `directory`/models. Triton is fetched where it is missing.
    """
    home = install()
    packages = site_packages(home)
    server = packages / "pytriton" / "tritonserver"
    repository = repository or directory / "models"
    repository.mkdir(parents=True, exist_ok=True)
    backends = directory / "backends"
    backends.mkdir(parents=True, exist_ok=True)
    for name, target in (("python", server / "backends" / "python"), ("onnxruntime", BACKENDS / "onnxruntime")):
        link = backends / name
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    return Recipe(
        name="triton",
        command=_command(server, backends=backends, repository=repository, address=address),
        directory=directory,
        env=_environment(home, packages),
        probe=partial(probes.http_ok, address.host, address.http, "/v2/health/ready"),
        ports={"http": address.http, "grpc": address.grpc, "metrics": address.metrics},
        start_timeout_s=60,
    )


def _command(server: Path, *, backends: Path, repository: Path, address: TritonAddress) -> tuple[str, ...]:
    prefix = f"shm-region-prefix-name=gyre_{address.grpc}_"  # two servers on one machine share /dev/shm
    return (
        str(server / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        "--strict-readiness=false",  # one model that cannot be loaded must not take the others out of service
        "--exit-on-error=false",
        f"--backend-directory={backends}",
        f"--backend-config=python,{prefix}",
        f"--backend-config=onnxruntime,{prefix}",
        f"--cache-directory={server / 'caches'}",
        f"--cache-config=local,size={CACHE_BYTES}",
        f"--http-address={address.host}",
        f"--http-port={address.http}",
        f"--grpc-address={address.host}",
        f"--grpc-port={address.grpc}",
        f"--metrics-address={address.host}",
        f"--metrics-port={address.metrics}",
        "--allow-gpu-metrics=false",
        "--exit-timeout-secs=5",
        "--disable-auto-complete-config",
        "--log-info=true",
    )


def _environment(home: Path, packages: Path) -> dict[str, str]:
    # The backend's interpreter is isolated: it ignores PYTHONPATH and finds its prefix by looking for python3 on PATH.
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{find_libpython(home)}"
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {
        # Nothing of the caller's: another shell would make it another process, to be stopped and started.
        "PATH": f"{home / 'bin'}:{os.defpath}",
        "LD_LIBRARY_PATH": f"{libraries}:{inherited}" if inherited else libraries,
        "OMP_NUM_THREADS": "1",
    }


def find_libpython(home: Path) -> Path:
    """The directory of the libpython that belongs to the Python of the environment `home`.

    Raises:
        LocalStackError: there is none on this machine.
    """
    base = (home / "bin" / "python").resolve().parent.parent
    for directory in (base / "lib", *sorted((base / "lib").glob("*-linux-gnu"))):
        if (directory / _LIBPYTHON).exists():
            return directory
    raise LocalStackError(
        f"Triton's Python backend needs {_LIBPYTHON} beside {base / 'bin'}, which is not there. "
        f"Remedy: run `make setup`, or `sudo apt-get install -y libpython{PYTHON}`."
    )


def find_uv() -> str:
    """The uv that runs this process (it exports UV), or the one on PATH.

    Raises:
        LocalStackError: there is none.
    """
    uv = os.environ.get("UV") or shutil.which("uv")
    if not uv:
        raise LocalStackError("uv is not on PATH. Remedy: run `make setup`, which brings it.")
    return uv


def _python() -> str:
    """The Python of Triton's environment: the one behind this process where its version fits."""
    own = Path(sys.base_prefix) / "bin" / f"python{PYTHON}"
    return str(own) if own.exists() else PYTHON


def _run(*command: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        raise LocalStackError(
            f"`{' '.join(command)}` failed:\n{done.stderr.strip()}\n"
            "Remedy: check the network and run `make setup` again."
        )
