"""What `gyre-local` does with a stack: bring it up in order, take it down, look at it."""

import concurrent.futures
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gyre_local.components.services import SHARED_STATE
from gyre_local.failures import LocalStackError, NotReady
from gyre_local.holders import refuse_busy_ports
from gyre_local.places import StackDirectories, default_var
from gyre_local.process import tail
from gyre_local.stack import Member, Stack
from gyre_local.supervisor import CONFIG_FILE, ProcessState, Supervisor, log_path
from gyre_local.timeouts import Deadline

POLL_S = 0.2
_ENDED = {
    "BACKOFF": "ended at start, will be tried again",
    "EXITED": "ended",
    "FATAL": "kept ending at start, given up",
    "UNKNOWN": "unknown to supervisord",
}
Report = Callable[[str, str], None]
"""Told of each step: the process and what happens to it (`starting`, `healthy`, `stopping`, `stopped`)."""


@dataclass(frozen=True)
class ProcessHealth:
    """One line of the status table.

    Attributes:
        name: of the process.
        process: what supervisord knows of it; None where it knows nothing.
        restarts: how often it was started again since supervisord came up.
        reason: why it is not healthy, one sentence; empty where it is.
    """

    name: str
    process: ProcessState | None
    restarts: int
    reason: str

    @property
    def is_healthy(self) -> bool:
        """True when the process is up and its probe passes."""
        return not self.reason


@dataclass
class _Start:
    """A start under way: until when it may take, and the first process that was seen of it, 0 before."""

    deadline: Deadline
    pid: int = 0

    def has_ended(self, state: ProcessState) -> bool:
        """Whether the process has ended, also where supervisord has started another one at once."""
        first, self.pid = self.pid, self.pid or state.pid
        return state.has_failed or (first != 0 and state.pid not in (0, first))


def bring_up(stack: Stack, members: Sequence[Member], report: Report) -> None:
    """Start `members`, each as soon as those of them that it needs are healthy; return when all are.

    One that runs stays, and is restarted where its configuration changed. What is needed and not among them is not
    started. After an error what was started goes on.

    Raises:
        LocalStackError: a port is busy, something is not installed, or a process ends or is not healthy in time.
    """
    supervisor = Supervisor(stack.places)
    up = {name for name, state in supervisor.states().items() if state.is_up}
    refuse_busy_ports(stack.ports.host, [member for member in members if member.name not in up], _stops(stack, up))
    recipes = {member.name: member.prepare() for member in members}
    # What runs already stays in the configuration, even when only some members are brought up now.
    kept = [member.prepare() for member in stack.members.values() if member.name in up - set(recipes)]
    supervisor.apply([*recipes.values(), *kept])
    starts: dict[str, _Start] = {}
    waiting = {member.name: member for member in members}
    while waiting:
        for member in list(waiting.values()):
            if member.name not in starts:
                if any(name in waiting for name in member.after):
                    continue
                supervisor.start(member.name)
                starts[member.name] = _Start(Deadline(recipes[member.name].start_timeout_s))
                report(member.name, "starting")
            elif _check_started(supervisor, member, starts[member.name]):
                del waiting[member.name]
                report(member.name, "healthy")
        time.sleep(POLL_S)


def _stops(stack: Stack, up: set[str]) -> list[str]:
    """The commands that stop this checkout's stacks that are running, which may hold a port."""
    own = [stack.places] if up else []
    return [each.make("down") for each in (*own, *map(StackDirectories, running_elsewhere(stack.places)))]


def _check_started(supervisor: Supervisor, member: Member, start: _Start) -> bool:
    """True when the member is healthy, False while it may still become so."""
    log = log_path(supervisor.places, member.name)
    state = supervisor.states()[member.name]
    if start.has_ended(state):
        raise LocalStackError(
            f"{member.name} ended at start. Its log {log} ends with:\n{tail(log)}\n"
            f"Remedy: put that right, then bring the stack up again; `{supervisor.places.make('down')}` stops the rest."
        )
    try:
        member.probe()
    except NotReady as reason:
        if start.deadline.passed:
            raise LocalStackError(
                f"{member.name} runs but is not healthy: {reason}. Its log {log} ends with:\n{tail(log)}"
            ) from reason
        return False
    return True


def take_down(stack: Stack, report: Report) -> bool:
    """Stop everything, what needs others first, and end supervisord; return False where no supervisord was running."""
    supervisor = Supervisor(stack.places)
    states = supervisor.states()
    if not supervisor.is_running():
        return False
    for level in reversed(levels(stack.members.values())):
        names = [member.name for member in level if member.name in states and states[member.name].state != "STOPPED"]
        for name in names:
            report(name, "stopping")
        supervisor.stop(names)
        for name in names:
            report(name, "stopped")
    supervisor.stop([name for name in states if name not in stack.members])
    supervisor.shut_down()
    return True


def running_elsewhere(places: StackDirectories) -> list[Path]:
    """The directories of this checkout's other stacks that are running, such as a demo's that was kept."""
    root = default_var()
    found = [each.parent for each in (*root.glob(CONFIG_FILE), *root.glob(f"*/{CONFIG_FILE}"))]
    return sorted(each for each in found if each != places.var and Supervisor(StackDirectories(each)).is_running())


def levels(members: Iterable[Member]) -> list[list[Member]]:
    """The members in groups, each of which needs only those of the groups before it; other needs are ignored."""
    rank: dict[str, int] = {}
    groups: list[list[Member]] = []
    for member in members:  # a stack lists them in such an order that one pass is enough
        rank[member.name] = max((rank[name] + 1 for name in member.after if name in rank), default=0)
        while len(groups) <= rank[member.name]:
            groups.append([])
        groups[rank[member.name]].append(member)
    return groups


def look(stack: Stack, members: Sequence[Member]) -> list[ProcessHealth]:
    """The state and health of `members`, at least one, in their order; probed at the same time, nothing is raised."""
    supervisor = Supervisor(stack.places)
    states = supervisor.states()
    restarts = supervisor.restarts() if states else {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(members)) as pool:
        reasons = list(pool.map(lambda member: _reason(member, states.get(member.name)), members))
    return [
        ProcessHealth(
            member.name, process=states.get(member.name), restarts=restarts.get(member.name, 0), reason=reason
        )
        for member, reason in zip(members, reasons, strict=True)
    ]


def _reason(member: Member, state: ProcessState | None) -> str:
    """Why the member is not healthy, empty when it is."""
    if state is None or state.state == "STOPPED":
        return "not started"
    if not state.is_up:
        return _ENDED[state.state]
    try:
        member.probe()
    except NotReady as reason:
        return str(reason)
    return ""


def forget(stack: Stack) -> None:
    """Delete the data and logs of the whole stack; its configuration, its list of loops and its privacy key stay.

    What cannot be deleted stays, too, without an error.

    Raises:
        LocalStackError: it is running.
    """
    if Supervisor(stack.places).is_running():
        remedy = f"`{stack.places.make('down')}` first"
        raise LocalStackError(f"the stack in {stack.places.var} is running. Remedy: {remedy}.")
    for name in (*stack.members, *SHARED_STATE):
        shutil.rmtree(stack.places.state(name), ignore_errors=True)
    shutil.rmtree(stack.places.logs, ignore_errors=True)


def restart(stack: Stack, member: Member, report: Report) -> None:
    """Stop one member, start it again with its present configuration, and wait until it is healthy.

    Raises:
        LocalStackError: the stack is not running, or the member does not come up.
    """
    stop(stack, [member], report)
    bring_up(stack, [member], report)


def stop(stack: Stack, members: Sequence[Member], report: Report) -> None:
    """Stop some members of a running stack, what needs others first; they stay stopped until they are started.

    Members that need them go on.

    Raises:
        LocalStackError: the stack is not running.
    """
    supervisor = _running(stack)
    for level in reversed(levels(stack.members.values())):
        for member in [each for each in level if each in members]:
            report(member.name, "stopping")
            supervisor.stop([member.name])
            report(member.name, "stopped")


def start(stack: Stack, members: Sequence[Member], report: Report) -> None:
    """Start some members of a running stack, and wait until they are healthy.

    Raises:
        LocalStackError: the stack is not running, or a member does not come up.
    """
    _running(stack)
    bring_up(stack, members, report)


def _running(stack: Stack) -> Supervisor:
    supervisor = Supervisor(stack.places)
    if not supervisor.is_running():
        raise LocalStackError(f"no stack is running in {stack.places.var}. Remedy: `{stack.places.make('up')}`.")
    return supervisor
