"""`make breaking` refuses protos that would break clients, and copes with whatever history a clone has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTO = "gyre/features/v1/features.proto"
GIT = ("git", "-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose only commit holds the protos as they are now."""
    root = tmp_path / "repository"
    shutil.copytree(ROOT / "proto", root / "proto")
    _git(root, "init", "--quiet")
    _commit(root)
    return root


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run([*GIT, *arguments], cwd=folder, check=True, capture_output=True, timeout=30)


def _commit(folder: Path) -> None:
    _git(folder, "add", "--all")
    _git(folder, "commit", "--quiet", "--allow-empty", "--message", "Protos")


def _remove_a_field(folder: Path) -> None:
    path = folder / "proto" / PROTO
    lines = path.read_text().splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if "message GetFeaturesRequest" in line)
    number = next(number for number in range(start, len(lines)) if "= 1" in lines[number])
    end = next(last for last in range(number, len(lines)) if lines[last].rstrip().endswith(";"))
    path.write_text("".join(lines[:number] + lines[end + 1 :]))


def _breaking(folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [folder / "proto" / "breaking.sh"], capture_output=True, text=True, check=False, timeout=60, env=environ
    )


def test_the_first_commit_has_nothing_to_break(repository: Path) -> None:
    """Without an earlier commit the check passes and says that there is nothing to compare with."""
    done = _breaking(repository)
    assert (done.returncode, done.stdout) == (0, "there are no earlier protos to compare with\n"), done.stderr


def test_a_shallow_clone_passes(repository: Path, tmp_path: Path) -> None:
    """A clone of depth 1 has no commit before, which is no error."""
    _commit(repository)
    _git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository}", "shallow")
    done = _breaking(tmp_path / "shallow")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "uncommitted"])
def test_a_removed_field_is_refused(committed: bool, repository: Path) -> None:
    """A field that is gone breaks clients, whether the change is committed or not."""
    _remove_a_field(repository)
    if committed:
        _commit(repository)
    done = _breaking(repository)
    assert done.returncode != 0
    assert 'field "1"' in done.stdout.lower(), done.stdout + done.stderr


def test_a_branch_is_compared_with_where_it_left_main(repository: Path, tmp_path: Path) -> None:
    """A break in an earlier commit of a branch is refused too, when a later commit of it is checked."""
    _git(tmp_path, "clone", "--quiet", str(repository), "branch")
    branch = tmp_path / "branch"
    _git(branch, "checkout", "--quiet", "-b", "change")
    _remove_a_field(branch)
    _commit(branch)
    _commit(branch)
    assert _breaking(branch).returncode != 0
