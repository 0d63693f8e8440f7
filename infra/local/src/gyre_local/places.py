"""Where things lie: the checkout, its `var/` directory, and the download cache shared by all checkouts."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[4]


def cache_dir() -> Path:
    """The folder of the download cache: `GYRE_CACHE`, or `~/.cache/gyre`; not created here."""
    return Path(os.environ.get("GYRE_CACHE") or Path.home() / ".cache" / "gyre").expanduser()


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold an advisory lock on the file `lock` against other processes in the block, waiting as long as it takes.

    The file is created, and stays.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class StackDirectories:
    """The directories of one local stack; none is created here."""

    var: Path

    @property
    def logs(self) -> Path:
        """The directory of the logs, one file for each process."""
        return self.var / "log"

    def make(self, target: str) -> str:
        """The command that a person types to have `make` do something with this stack."""
        if self.var == default_var():
            return f"make {target}"
        path = self.var.relative_to(Path.cwd()) if self.var.is_relative_to(Path.cwd()) else self.var
        return f"GYRE_VAR={path} make {target}"

    def state(self, name: str) -> Path:
        """The path of the directory of the process `name`, or of `warehouse`, `artifacts` and `privacy`."""
        return self.var / name


def default_var() -> Path:
    """The directory of this checkout's stack where `GYRE_VAR` names no other; each example's demo has one within."""
    return REPOSITORY / "var"


def stack_places() -> StackDirectories:
    """The directories of this checkout's stack: `GYRE_VAR`, or `var/` at the root of the repository."""
    return StackDirectories(var=Path(os.environ.get("GYRE_VAR") or default_var()).absolute())
