"""Finds out who holds a TCP port, from /proc, so that a busy port can be named with its remedy."""

import contextlib
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from gyre_local.failures import LocalStackError
from gyre_local.stack import Member

_LISTEN = "0A"


def refuse_busy_ports(host: str, members: Iterable[Member], stops: Sequence[str] = ()) -> None:
    """Check that every port of `members` can be bound.

    Args:
        host: where they listen.
        members: the processes that are to be started.
        stops: the commands that stop the stacks that are running, one of which may hold a port.

    Raises:
        LocalStackError: some cannot; the message names each port, its holder and the remedy.
    """
    busy = [
        f"port {port} ({member.name} {meaning}) is taken by {holder(port)}"
        for member in members
        for meaning, port in member.ports.items()
        if not _can_bind(host, port)
    ]
    if busy:
        raise LocalStackError(
            "\n".join(busy) + f"\nRemedy: stop {_named(stops)}, or move the whole stack with"
            " GYRE_PORT_OFFSET=100 (for every command), or edit infra/local/ports.toml."
        )


def _named(stops: Sequence[str]) -> str:
    if not stops:
        return "that process"
    which = "the stack that is running" if len(stops) == 1 else "one of the stacks that are running"
    return f"that process (where it is of {which}: {' or '.join(f'`{each}`' for each in stops)})"


def holder(port: int) -> str:
    """The process that listens on `port`: its id and command, as far as this user may see it."""
    inodes = set(_listening_inodes(port))
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and inodes & _socket_inodes(process):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            return f"process {process.name} (`{command[:120]}`)"
    return "a process of another user"


def _can_bind(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _listening_inodes(port: int) -> Iterable[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6 has no tcp6
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _socket_inodes(process: Path) -> set[str]:
    inodes = set()
    with contextlib.suppress(PermissionError, FileNotFoundError, ProcessLookupError):  # not ours, or gone meanwhile
        for descriptor in (process / "fd").iterdir():
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    return inodes
