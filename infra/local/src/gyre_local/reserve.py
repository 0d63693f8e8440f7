"""Free ports that two test sessions on one machine do not both take.

Asking the kernel for port 0 and closing it again leaves a gap in which another session gets the same port. So ports are
drawn below the ephemeral range and held by a file lock for the life of this process.
"""

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

from gyre_local.failures import LocalStackError

FIRST, LAST = 20000, 29999
_ATTEMPTS = 500
_held: list[int] = []
"""Descriptors of the locked files: the process's end closes them, and with them the locks."""


def free_ports(count: int, *, host: str = "127.0.0.1") -> list[int]:
    """Reserve `count` free ports of `FIRST` to `LAST` against other sessions for as long as this process lives.

    Raises:
        LocalStackError: not so many were found free in 500 attempts.
    """
    directory = Path(tempfile.gettempdir()) / "gyre-ports"
    directory.mkdir(mode=0o777, exist_ok=True)
    found: list[int] = []
    for _ in range(_ATTEMPTS):
        if len(found) == count:
            return found
        port = random.randint(FIRST, LAST)  # noqa: S311 - spreads sessions over the range, guards nothing
        if _reserve(directory / str(port)) and _is_free(host, port):
            found.append(port)
    raise LocalStackError(f"no {count} free ports between {FIRST} and {LAST}. Remedy: stop what listens there.")


def _reserve(path: Path) -> bool:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    _held.append(lock)
    return True


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
