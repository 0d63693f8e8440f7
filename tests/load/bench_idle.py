"""What the whole local stack takes while nobody asks it anything: processor time and memory of each process.

    make bench-idle            # or: python tests/load/bench_idle.py --seconds 60

The stack runs under its real supervisor, on ports and in a folder of its own. Processor time is what the kernel counts
for each process and its children (utime and stime of /proc/PID/stat), so that it means the same beside other load;
memory is the proportional set size (smaps_rollup), in which shared pages count once.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench_report import Row, show, write
from gyre_local import operations
from gyre_local.places import StackDirectories
from gyre_local.stack import DEFAULT_LOOP, Stack, build_stack
from gyre_local.supervisor import Supervisor
from gyre_local.testing import free_stack_ports

MAX_CORE_SHARE = 0.20
"""The bar: processor seconds a second, of the whole stack."""
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure and report; 1 where the stack takes more than the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long is measured")
    parser.add_argument("--settle", type=float, default=30.0, help="seconds from the last healthy process until then")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gyre-idle-") as folder:
        directory = Path(folder)
        stack = build_stack(
            StackDirectories(directory / "var"), free_stack_ports(directory / "ports.toml"), [DEFAULT_LOOP]
        )
        try:
            operations.bring_up(stack, list(stack.members.values()), lambda _name, _step: None)
            rows = _measure(stack, settle_s=given.settle, seconds=given.seconds)
        finally:
            operations.take_down(stack, lambda _name, _step: None)
    show(f"The idle stack, {given.seconds:g} s", rows)
    write("idle", rows)
    total = next(row.value for row in rows if row.system == "whole stack" and row.metric == "processor")
    passed = total <= 100 * MAX_CORE_SHARE
    sys.stdout.write(f"{'passed' if passed else 'FAILED'}: {total:.1f} % of a core, at most {MAX_CORE_SHARE:.0%}\n")
    return 0 if passed else 1


def _measure(stack: Stack, *, settle_s: float, seconds: float) -> list[Row]:
    time.sleep(settle_s)
    roots = {name: state.pid for name, state in Supervisor(stack.places).states().items()}
    roots["supervisord"] = int((stack.places.var / "supervisord.pid").read_text())
    trees = _trees(roots)
    before, started = {name: _processor_s(pids) for name, pids in trees.items()}, time.perf_counter()
    time.sleep(seconds)
    took_s = time.perf_counter() - started
    shares = {name: 100 * (_processor_s(pids) - before[name]) / took_s for name, pids in trees.items()}
    memory = {name: _memory_mb(pids) for name, pids in trees.items()}
    shares["whole stack"], memory["whole stack"] = sum(shares.values()), sum(memory.values())
    rows = [Row(name, "idle", "processor", share, "% of a core") for name, share in shares.items()]
    return rows + [Row(name, "idle", "memory", size, "MB") for name, size in memory.items()]


def _trees(roots: Mapping[str, int]) -> dict[str, list[int]]:
    """Each process with its descendants, but for those that are listed themselves."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(_fields(path)[1]), []).append(int(path.parent.name))
        except FileNotFoundError:
            continue
    named = set(roots.values())

    def below(pid: int) -> Iterable[int]:
        yield pid
        for child in children.get(pid, ()):
            if child not in named:
                yield from below(child)

    return {name: list(below(pid)) for name, pid in roots.items()}


def _fields(path: Path) -> list[str]:
    """The fields of /proc/PID/stat after the command's name, which may hold blanks."""
    return path.read_text().rpartition(")")[2].split()


def _processor_s(pids: Iterable[int]) -> float:
    """Processor seconds of processes so far, user and system, with those of children that ended."""
    return sum(sum(map(int, _fields(Path(f"/proc/{pid}/stat"))[11:15])) for pid in pids) / _TICKS


def _memory_mb(pids: Iterable[int]) -> float:
    """The proportional set size of processes, MB."""
    lines = (line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    sys.exit(main())
