"""Real processes under the supervisor: started in order, restarted when killed, stopped, and named when they fail."""

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from gyre_local import operations, probes
from gyre_local.components import redis
from gyre_local.failures import LocalStackError
from gyre_local.places import REPOSITORY, StackDirectories
from gyre_local.ports import Ports
from gyre_local.process import Process, running
from gyre_local.recipe import Recipe
from gyre_local.reserve import free_ports
from gyre_local.stack import Member, Stack
from gyre_local.supervisor import Supervisor
from gyre_local.testing import eventually_sync

pytestmark = pytest.mark.adapter
HOST = "127.0.0.1"


def fails_at_once(directory: Path) -> Recipe:
    """A process that complains and ends."""
    directory.mkdir(parents=True, exist_ok=True)
    command = (sys.executable, "-c", "raise SystemExit('no quorum of 100% today')")
    return Recipe(name="failing", command=command, directory=directory, probe=lambda: None)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Two Redis servers, the second after the first, and a process that fails; taken down afterwards."""
    places = StackDirectories(tmp_path / "var")
    first, second = free_ports(2)
    members = [
        Member(
            name,
            prepare=partial(prepared_redis, name, places, port),
            probe=partial(probes.redis, HOST, port),
            ports={"server": port},
            after=after,
        )
        for name, port, after in (("first", first, ()), ("second", second, ("first",)))
    ]
    members.append(
        Member("failing", prepare=partial(fails_at_once, places.state("failing")), probe=lambda: None, ports={})
    )
    ports = Ports(host=HOST, processes={member.name: member.ports for member in members})
    stack = Stack(members={member.name: member for member in members}, places=places, ports=ports, loops=[])
    yield stack
    operations.take_down(stack, lambda *_: None)


def prepared_redis(name: str, places: StackDirectories, port: int) -> Recipe:
    """A Redis under another name."""
    return replace(redis.prepare(places.state(name), host=HOST, port=port), name=name)


def test_a_stack_lives_through_its_life(stack: Stack) -> None:
    """Members start in order, a killed one is restarted and counted, and all are gone after the end."""
    steps: list[tuple[str, str]] = []
    members = stack.select(["first", "second"])
    operations.bring_up(stack, members, lambda *step: steps.append(step))
    assert steps == [("first", "starting"), ("first", "healthy"), ("second", "starting"), ("second", "healthy")]
    operations.bring_up(stack, members, lambda *_: None)

    supervisor = Supervisor(stack.places)
    killed = supervisor.states()["first"].pid
    os.kill(killed, signal.SIGKILL)

    def restarted() -> bool:
        line = next(line for line in operations.look(stack, members) if line.name == "first")
        return line.is_healthy and line.restarts == 1 and line.process is not None and line.process.pid != killed

    eventually_sync(restarted, timeout_s=20, message="the killed process runs again")
    stops = f"`GYRE_VAR={stack.places.var} make down`"
    with pytest.raises(LocalStackError, match=stops):
        operations.forget(stack)
    pids = [state.pid for state in supervisor.states().values() if state.pid]
    operations.take_down(stack, lambda *_: None)
    assert not supervisor.is_running()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    operations.forget(stack)
    assert not stack.places.state("first").exists()


def test_a_restart_gives_a_new_process_and_leaves_the_others(stack: Stack) -> None:
    """Restarting one member leaves the process of another as it is."""
    members = stack.select(["first", "second"])
    operations.bring_up(stack, members, lambda *_: None)
    before = Supervisor(stack.places).states()
    operations.restart(stack, stack.members["second"], lambda *_: None)
    after = Supervisor(stack.places).states()
    assert after["first"].pid == before["first"].pid
    assert after["second"].pid != before["second"].pid


def test_a_stopped_member_stays_stopped_until_it_is_started(stack: Stack) -> None:
    """`stop` ends the members that are named and leaves the others; `start` makes them healthy again."""
    members = stack.select(["first", "second"])
    operations.bring_up(stack, members, lambda *_: None)
    first = Supervisor(stack.places).states()["first"].pid
    operations.stop(stack, stack.select(["second"]), lambda *_: None)
    assert [line.reason for line in operations.look(stack, members)] == ["", "not started"]
    operations.start(stack, stack.select(["second"]), lambda *_: None)
    assert all(line.is_healthy for line in operations.look(stack, members))
    assert Supervisor(stack.places).states()["first"].pid == first


def test_members_of_a_stack_that_is_down_are_not_started(stack: Stack) -> None:
    """`start` and `stop` of a stack that is not running name the command that brings it up."""
    for change in (operations.start, operations.stop):
        with pytest.raises(LocalStackError, match=f"`GYRE_VAR={stack.places.var} make up`"):
            change(stack, stack.select(["first"]), lambda *_: None)


def test_a_refused_demo_leaves_the_stack_that_runs(stack: Stack) -> None:
    """`make demo` where a stack runs already says what stops it, and stops nothing itself."""
    members = stack.select(["first"])
    operations.bring_up(stack, members, lambda *_: None)
    command = ["make", "--old-file=setup", "demo", "LOOP=simworld", f"GYRE_VAR={stack.places.var}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert all(line.is_healthy for line in operations.look(stack, members))
    assert done.returncode != 0
    assert f"`GYRE_VAR={stack.places.var} make down`" in done.stderr


def test_what_a_restart_of_another_changes_runs_again(stack: Stack) -> None:
    """A running member whose configuration is another than it was started with is stopped, and started with it."""
    members = stack.select(["first", "second"])
    operations.bring_up(stack, members, lambda *_: None)
    first = stack.members["first"]

    def changed() -> Recipe:
        recipe = first.prepare()
        return replace(recipe, env={**recipe.env, "SINCE": "a change"})

    mended = {**stack.members, "first": replace(first, prepare=changed)}
    before = Supervisor(stack.places).states()
    operations.restart(replace(stack, members=mended), stack.members["second"], lambda *_: None)

    def runs() -> bool:
        return all(line.is_healthy for line in operations.look(stack, members))

    eventually_sync(runs, timeout_s=20, message="both run")
    assert Supervisor(stack.places).states()["first"].pid != before["first"].pid


def test_a_process_that_ends_at_start_shows_its_last_words(stack: Stack) -> None:
    """The message of a failed start holds the end of the process's log."""
    with pytest.raises(LocalStackError, match=r"failing ended at start(?s:.)*no quorum of 100% today"):
        operations.bring_up(stack, stack.select(["failing"]), lambda *_: None)


def test_a_process_that_ends_after_a_while_shows_its_last_words_at_once(stack: Stack, tmp_path: Path) -> None:
    """Supervisord has started it again before anybody looks, and again: the first end is the end of the start."""
    (port,) = free_ports(1)
    starts = tmp_path / "starts"

    def refuses_its_file() -> Recipe:
        code = (
            f"import time; open({str(starts)!r}, 'a').write('.'); time.sleep(1.5); raise SystemExit('loop.clock: bad')"
        )
        command = (sys.executable, "-c", code)
        return Recipe("failing", command, directory=tmp_path, probe=lambda: None, start_timeout_s=30)

    probe = partial(probes.redis, HOST, port)
    refusing = Member("failing", prepare=refuses_its_file, probe=probe, ports={})
    operations.bring_up(stack, stack.select(["first"]), lambda *_: None)
    members = {"first": stack.members["first"], "failing": refusing}
    with pytest.raises(LocalStackError, match=r"failing ended at start(?s:.)*loop\.clock: bad"):
        operations.restart(replace(stack, members=members), refusing, lambda *_: None)
    assert len(starts.read_text()) <= 3


SERVER = """
import pathlib, signal
from gyre_runtime import ServiceSettings, load_settings
try:
    load_settings(ServiceSettings)
    said = "its settings are good"
except SystemExit as refusal:
    said = str(refusal)
pathlib.Path("said").write_text(said)
signal.pause()
"""


@pytest.mark.parametrize("is_supervised", [True, False])
def test_settings_of_the_command_line_stop_no_process(
    is_supervised: bool, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller's token and source in the shell keep no server from its start, and a misspelt one still stops it."""
    said = tmp_path / "said"

    def answer(environ: dict[str, str]) -> str:
        said.unlink(missing_ok=True)
        with monkeypatch.context() as shell:
            for variable, value in environ.items():
                shell.setenv(variable, value)
            if not is_supervised:
                with running(recipe, log=tmp_path / "log"):
                    return said.read_text()
            operations.bring_up(alone, alone.select(["server"]), lambda *_: None)
            operations.take_down(alone, lambda *_: None)
            return said.read_text()

    def has_said() -> None:
        if not said.exists() or not said.read_text():
            raise probes.NotReady("it has said nothing")

    program = tmp_path / "server.py"
    program.write_text(SERVER)
    recipe = Recipe("server", (sys.executable, str(program)), directory=tmp_path, probe=has_said)
    member = Member("server", prepare=lambda: recipe, probe=has_said, ports={})
    alone = replace(stack, members={"server": member})
    assert answer({"GYRE_TOKEN": "s3cret", "GYRE_SOURCE": "shop-app"}) == "its settings are good"
    assert "GYRE_TOKEN_FILE" in answer({"gyre_token_file": "/run/secrets/token"})


@pytest.fixture
def kept() -> Iterator[StackDirectories]:
    """A supervisor that runs in a directory of the checkout's own, as that of a demo that was kept does."""
    places = StackDirectories(REPOSITORY / "var" / f"test-{uuid.uuid4().hex[:8]}")
    supervisor = Supervisor(places)
    supervisor.apply([])
    yield places
    if supervisor.is_running():
        supervisor.shut_down()
    shutil.rmtree(places.var)


@pytest.mark.parametrize("command", ["down", "status"])
def test_a_stack_that_runs_elsewhere_is_named(command: str, kept: StackDirectories, tmp_path: Path) -> None:
    """Where none runs in the directory that is asked for, nobody is told that it is down; the other is named."""
    env = {**os.environ, "GYRE_VAR": str(tmp_path / "var"), "COLUMNS": "500"}
    words = [sys.executable, "-m", "gyre_local.cli", command]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert "the stack is down" not in done.stdout
    assert f"GYRE_VAR={kept.var.relative_to(REPOSITORY)} make {command}" in done.stdout
    assert done.returncode == 1
    assert Supervisor(kept).is_running()


def test_restart_needs_a_running_stack(stack: Stack) -> None:
    """Restarting a member of a stack that is down names the remedy."""
    with pytest.raises(LocalStackError, match="make up"):
        operations.restart(stack, stack.members["first"], lambda *_: None)


def test_a_child_process_that_fails_shows_its_last_words(tmp_path: Path) -> None:
    """A test session's process that ends at start is reported with its log."""
    with (
        pytest.raises(LocalStackError, match="no quorum"),
        running(_never_ready(fails_at_once(tmp_path)), log=tmp_path / "log"),
    ):
        pass


def _never_ready(recipe: Recipe) -> Recipe:
    (port,) = free_ports(1)
    return replace(recipe, probe=partial(probes.redis, HOST, port))


def test_a_stopped_process_starts_again(tmp_path: Path) -> None:
    """A test may stop a component and start it again on the same port."""
    (port,) = free_ports(1)
    process = Process(redis.prepare(tmp_path, host=HOST, port=port, durable=False), log=tmp_path / "redis.log")
    for _ in range(2):
        process.start()
        probes.redis(HOST, port)
        process.stop()
        with pytest.raises(probes.NotReady):
            probes.redis(HOST, port)
