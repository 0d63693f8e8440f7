"""Reads ports.toml, the one place of ports, into a typed object."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gyre_local.failures import LocalStackError
from gyre_local.places import REPOSITORY

PORTS_FILE = REPOSITORY / "infra" / "local" / "ports.toml"
HIGHEST_PORT = 65535


@dataclass(frozen=True)
class Ports:
    """Every port of a local stack, by process and meaning (`grpc`, `metrics`, ...)."""

    host: str
    processes: Mapping[str, Mapping[str, int]]

    def of(self, process: str) -> Mapping[str, int]:
        """All ports of one process, by meaning.

        Raises:
            LocalStackError: the process has none.
        """
        if process not in self.processes:
            raise LocalStackError(f"no ports for '{process}'; there are ports for {', '.join(self.processes)}")
        return self.processes[process]

    def port(self, process: str, meaning: str) -> int:
        """The number of one port, the offset included.

        Raises:
            LocalStackError: the process has no port of that meaning.
        """
        ports = self.of(process)
        if meaning not in ports:
            raise LocalStackError(f"'{process}' has no {meaning} port, only {', '.join(ports)}")
        return ports[meaning]

    def address(self, process: str, meaning: str) -> str:
        """One port as host:port; raises what `port` does."""
        return f"{self.host}:{self.port(process, meaning)}"


def load_ports(path: Path | None = None, *, offset: int | None = None) -> Ports:
    """Read a ports file and check it.

    Args:
        path: the file, by default `GYRE_PORTS_FILE` or infra/local/ports.toml.
        offset: added to each port, by default `GYRE_PORT_OFFSET` or 0.

    Raises:
        LocalStackError: the file is missing or wrong; the message names the file, the entry and the rule.
    """
    path = path or Path(os.environ.get("GYRE_PORTS_FILE") or PORTS_FILE)
    offset = _offset() if offset is None else offset
    try:
        content = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise LocalStackError(
            f"{path}: there is no such ports file. Remedy: correct or unset GYRE_PORTS_FILE."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise LocalStackError(f"{path}: {error}") from error
    host = content.pop("host", None)
    if not isinstance(host, str):
        raise LocalStackError(f"{path}: host: {host!r} is not an address")
    processes = {name: _checked(path, name, table, offset=offset) for name, table in content.items()}
    _refuse_duplicates(path, processes)
    return Ports(host=host, processes=processes)


def _offset() -> int:
    text = os.environ.get("GYRE_PORT_OFFSET") or "0"
    try:
        return int(text)
    except ValueError as error:
        raise LocalStackError(f"GYRE_PORT_OFFSET: {text!r} is not a whole number") from error


def _checked(path: Path, name: str, table: object, *, offset: int) -> dict[str, int]:
    if not isinstance(table, dict):
        raise LocalStackError(f"{path}: {name}: {table!r} is not a table of ports")
    ports: dict[str, int] = {}
    for meaning, port in table.items():
        if not isinstance(port, int) or not 0 < port + offset <= HIGHEST_PORT:
            raise LocalStackError(
                f"{path}: {name}.{meaning}: {port!r} (offset {offset}) is not from 1 to {HIGHEST_PORT}"
            )
        ports[meaning] = port + offset
    return ports


def _refuse_duplicates(path: Path, processes: Mapping[str, Mapping[str, int]]) -> None:
    seen: dict[int, str] = {}
    for name, ports in processes.items():
        for meaning, port in ports.items():
            other = seen.setdefault(port, f"{name}.{meaning}")
            if other != f"{name}.{meaning}":
                raise LocalStackError(f"{path}: {name}.{meaning}: {port} is already that of {other}")
