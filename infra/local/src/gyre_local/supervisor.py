"""supervisord as the keeper of the stack: its configuration, its start and stop, and its XML-RPC API.

http://supervisord.org/configuration.html and http://supervisord.org/api.html. It restarts what dies, rotates each
process's log, and speaks over a unix socket in `var/`.
"""

import contextlib
import hashlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from supervisor.xmlrpc import SupervisorTransport

from gyre_local.failures import LocalStackError
from gyre_local.places import StackDirectories
from gyre_local.process import POLL_S, guarded, inherited, tail
from gyre_local.recipe import Recipe
from gyre_local.timeouts import Deadline

LOG_BYTES = "10MB"
LOG_BACKUPS = 3
START_RETRIES = 20
"""Attempts with a growing pause (1 s, 2 s, ...) before supervisord gives a process up: three and a half minutes."""
SOCKET_PATH_LIMIT = 100
CONFIG_FILE = "supervisord.conf"
ALREADY_STARTED, NOT_RUNNING, BAD_NAME = 60, 70, 10
"""Fault codes of supervisord's API."""


@dataclass(frozen=True)
class ProcessState:
    """What supervisord knows of one process."""

    name: str
    state: str
    pid: int
    uptime_s: float
    log: Path

    @property
    def is_up(self) -> bool:
        """True while the process exists, healthy or not, starting and stopping included."""
        return self.state in {"RUNNING", "STARTING", "STOPPING"}

    @property
    def has_failed(self) -> bool:
        """True when it ended by itself, whether or not it will be tried again."""
        return self.state in {"BACKOFF", "EXITED", "FATAL", "UNKNOWN"}


def socket_path(places: StackDirectories) -> Path:
    """The socket in `var/`, or one in the temporary directory where that path is too long for a unix socket."""
    inside = places.var / "supervisor.sock"
    if len(str(inside)) < SOCKET_PATH_LIMIT:
        return inside
    digest = hashlib.sha256(str(places.var).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"gyre-{digest}.sock"


def render(places: StackDirectories, recipes: Sequence[Recipe]) -> str:
    """The text of supervisord's configuration for `recipes`; writes nothing."""
    socket_file = socket_path(places)
    head = f"""\
[unix_http_server]
file={socket_file}
chmod=0700

[supervisord]
logfile={places.logs / "supervisord.log"}
logfile_maxbytes={LOG_BYTES}
logfile_backups={LOG_BACKUPS}
pidfile={places.var / "supervisord.pid"}
directory={places.var}
childlogdir={places.logs}
identifier=gyre

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
    return "\n".join([head, *(_program(places, recipe) for recipe in recipes)])


def _program(places: StackDirectories, recipe: Recipe) -> str:
    environment = ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(recipe.env.items()))
    return f"""\
[program:{recipe.name}]
command={_escaped(shlex.join(guarded(recipe.command)))}
directory={recipe.directory}
environment={environment}
autostart=false
autorestart=true
startsecs=1
startretries={START_RETRIES}
stopwaitsecs={recipe.stop_timeout_s:.0f}
killasgroup=true
redirect_stderr=true
stdout_logfile={log_path(places, recipe.name)}
stdout_logfile_maxbytes={LOG_BYTES}
stdout_logfile_backups={LOG_BACKUPS}
"""


def _escaped(value: str) -> str:
    return value.replace("%", "%%")


def log_path(places: StackDirectories, name: str) -> Path:
    """The path of the log of one process; it need not be there."""
    return places.logs / f"{name}.log"


class Supervisor:
    """The control of one stack's supervisord, which need not be running."""

    def __init__(self, places: StackDirectories) -> None:
        self.places = places
        self.config = places.var / CONFIG_FILE

    def _call(self, method: str, *arguments: object) -> Any:
        # The transport keeps a connection that a refused call leaves unusable, so each call has one of its own.
        transport = SupervisorTransport(None, None, f"unix://{socket_path(self.places)}")
        with contextlib.closing(transport):
            proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
            return getattr(proxy.supervisor, method)(*arguments)

    def is_running(self) -> bool:
        """True when supervisord answers."""
        try:
            self._call("getState")
        except (OSError, xmlrpc.client.Error):
            return False
        return True

    def apply(self, recipes: Sequence[Recipe]) -> None:
        """Write the configuration of `recipes`, and start supervisord or let the running one take over what changed.

        No process is started by it: one that runs is restarted where its recipe changed, and stopped and removed where
        `recipes` lack it.

        Raises:
            LocalStackError: supervisord does not start.
        """
        self.places.logs.mkdir(parents=True, exist_ok=True)
        self.config.write_text(render(self.places, recipes))
        self.config.chmod(0o600)
        if self.is_running():
            self._reload()
        else:
            self._launch()

    def _launch(self) -> None:
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=inherited())
        deadline = Deadline(15)
        while done.returncode == 0 and not deadline.passed:
            if self.is_running():
                return
            time.sleep(POLL_S)
        log = self.places.logs / "supervisord.log"
        raise LocalStackError(f"supervisord did not start:\n{done.stdout}{done.stderr}{tail(log)}")

    def _reload(self) -> None:
        up = {name for name, state in self.states().items() if state.is_up}
        ((added, changed, removed),) = self._call("reloadConfig")
        for name in (*changed, *removed):
            self.stop([name])
            self._call("removeProcessGroup", name)
        for name in (*added, *changed):
            self._call("addProcessGroup", name)
        for name in changed:
            if name in up:
                self.start(name)

    def states(self) -> dict[str, ProcessState]:
        """Every process that supervisord knows, by name; empty when it is not running."""
        if not self.is_running():
            return {}
        infos = cast("list[dict[str, Any]]", self._call("getAllProcessInfo"))
        return {
            info["name"]: ProcessState(
                name=info["name"],
                state=info["statename"],
                pid=info["pid"],
                uptime_s=float(info["now"] - info["start"]) if info["pid"] else 0.0,
                log=log_path(self.places, info["name"]),
            )
            for info in infos
        }

    def restarts(self) -> Mapping[str, int]:
        """How often each process was started again since supervisord came up, as its log tells."""
        starts: Counter[str] = Counter()
        log = self.places.logs / "supervisord.log"
        if log.exists():
            for line in log.read_text(errors="replace").splitlines():
                if "supervisord started with pid" in line:
                    starts.clear()
                elif match := re.search(r"spawned: '([^']+)' with pid", line):
                    starts[match[1]] += 1
        return {name: count - 1 for name, count in starts.items()}

    def start(self, name: str) -> None:
        """Start one process and return at once; one that runs stays. LocalStackError for an unknown one."""
        with _tolerated(ALREADY_STARTED):
            self._call("startProcess", name, False)

    def stop(self, names: Sequence[str]) -> None:
        """Stop processes together and return when they have ended; those not running, or unknown, are ignored."""
        for name in names:
            with _tolerated(NOT_RUNNING, BAD_NAME):
                self._call("stopProcess", name, False)
        waiting = set(names)
        while waiting:
            states = self.states()
            waiting = {name for name in waiting if name in states and states[name].is_up}
            time.sleep(POLL_S)

    def shut_down(self) -> None:
        """End supervisord, once its processes are stopped, and return when it is gone.

        Raises:
            LocalStackError: it is still there after 30 s, on a busy machine later.
        """
        self._call("shutdown")
        deadline = Deadline(30)
        while (self.places.var / "supervisord.pid").exists() or self.is_running():
            if deadline.passed:
                raise LocalStackError(f"supervisord did not end; see {self.places.logs / 'supervisord.log'}")
            time.sleep(POLL_S)


@contextlib.contextmanager
def _tolerated(*codes: int) -> Iterator[None]:
    try:
        yield
    except xmlrpc.client.Fault as fault:
        if fault.faultCode not in codes:
            raise LocalStackError(f"supervisord: {fault.faultString}") from fault
