"""Everything the stack needs that is not a Python package: distribution packages, Kafka, and Triton's environment."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from gyre_local.components import kafka, triton
from gyre_local.failures import LocalStackError

Report = Callable[[str], None]
"""Told of each step in words."""


def set_up(report: Report) -> None:
    """Install what is missing; quick when nothing is.

    Raises:
        LocalStackError: something cannot be installed; the message names the command that would.
    """
    missing = missing_packages()
    if missing:
        report(f"installing {', '.join(missing)} from the distribution")
        install_packages(missing)
    report(f"Kafka {kafka.VERSION}: jars, class archive")
    kafka.install()
    report("Triton: its own environment")
    triton.find_libpython(triton.install())


def missing_packages() -> list[str]:
    """The names of the Debian packages that the stack needs and this machine lacks; installs none."""
    lacking = [name for name in ("redis-server", "prometheus") if shutil.which(name) is None]
    library = f"libpython{triton.PYTHON}.so.1.0"
    base = Path(sys.base_prefix) / "lib"
    if not any((folder / library).exists() for folder in (base, *base.glob("*-linux-gnu"))):
        lacking.append(f"libpython{triton.PYTHON}")
    return lacking


def install_packages(packages: list[str]) -> None:
    """Install Debian packages, as root or through a sudo that asks for no password.

    Raises:
        LocalStackError: that is not possible here, or apt failed.
    """
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    by_hand = f"sudo apt-get update && sudo {' '.join(command)}"
    prefix = _privilege()
    if shutil.which("apt-get") is None or prefix is None:
        raise LocalStackError(
            f"{', '.join(packages)}: not installed, and this user may not install it. Remedy: `{by_hand}`"
            " (or your distribution's packages that provide redis-server, prometheus and libpython3.11),"
            " then `make setup` again."
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update", "-q"], command):
        done = subprocess.run(
            [*prefix, *step], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment
        )
    if done.returncode != 0:
        raise LocalStackError(f"`{' '.join(command)}` failed:\n{done.stderr.strip()[-2000:]}\nRemedy: `{by_hand}`.")


def _privilege() -> list[str] | None:
    """What to put before a command that needs root; None when this user cannot become root unasked."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0:
        return [sudo, "-n", "DEBIAN_FRONTEND=noninteractive"]
    return None
