"""Plain lines of long commands whose output is no terminal."""

import io
import subprocess
import sys
from pathlib import Path

from gyre_client.heartbeat import heartbeat_of
from gyre_core.heartbeat import Heartbeat
from gyre_local.testing import eventually_sync
from rich.console import Console
from rich.progress import Progress

ROOT = Path(__file__).parents[3]


class Terminal(io.StringIO):
    """An output that is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_a_pipe_gets_a_line_for_each_task_under_way():
    """What a progress bar would show in a terminal stands in plain lines where there is none."""
    out = io.StringIO()
    with Progress(console=Console(file=out)) as progress:
        progress.advance(progress.add_task("done", total=1))
        progress.add_task("live: requests", total=7000, completed=1234)
        with heartbeat_of(progress, interval_s=0.01):
            eventually_sync(lambda: "live: requests: 1,234 of 7,000\n" in out.getvalue())
        assert "] done" not in out.getvalue()


def test_a_terminal_with_a_bar_gets_none():
    """A terminal in which a bar moves gets no lines between; one without a bar gets them."""
    out = Terminal()
    with Heartbeat(lambda: ["working"], out=out, interval_s=0.001) as heartbeat:
        assert heartbeat._thread is None
    assert not out.getvalue()
    with Heartbeat(lambda: ["working"], out=out, interval_s=0.001, has_bar=False):
        eventually_sync(lambda: "] working\n" in out.getvalue())


def test_a_long_silent_command_of_the_makefile_prints_lines():
    """A command that prints nothing for more than ten seconds is told about, and its exit code stays."""
    script = "import time; time.sleep(10.5); raise SystemExit(3)"
    done = subprocess.run(
        [ROOT / "infra/local/heartbeat.sh", "installing", sys.executable, "-c", script],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "[10 s] installing" in done.stdout


def test_a_heartbeat_starts_before_the_client_is_loaded() -> None:
    """A command can show that it works before it imports what takes long: the heartbeat loads none of that itself."""
    code = "import gyre_core.heartbeat, sys; print({'grpc', 'rich', 'numpy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
