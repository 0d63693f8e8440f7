"""What every benchmark reports: figures as a table and as `var/bench/NAME.json`, and the clock that takes them."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

OUT = Path(__file__).parents[2] / "var" / "bench"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    system: str
    case: str
    metric: str
    value: float
    unit: str


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work gives, and how long it took, seconds."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the figures as a table."""
    table = Table(title=title)
    for heading in ("system", "case", "metric", "value", "unit"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for row in rows:
        table.add_row(row.system, row.case, row.metric, f"{row.value:,.2f}", row.unit)
    Console().print(table)


def write(name: str, rows: Sequence[Row]) -> None:
    """Write the figures to `var/bench/NAME.json`, with when and on what they were taken."""
    machine = {
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }
    told = {"name": name, "time": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine}
    OUT.mkdir(parents=True, exist_ok=True)
    content = json.dumps({**told, "rows": [asdict(row) for row in rows]}, indent=2)
    (OUT / f"{name}.json").write_text(content + "\n", encoding="utf-8")
