"""Limits of waiting grow with the machine's speed and load, and the variable replaces what is measured."""

import subprocess
import sys
from pathlib import Path

import pytest
from gyre_local.testing import eventually_sync
from gyre_local.timeouts import MAX_FACTOR, MIN_FACTOR, VARIABLE, Deadline, contention, scaled, slowness, timeout_factor

CASE = """
import time

import pytest


@pytest.mark.timeout(0.2)
def test_waits():
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        time.sleep(0.01)
"""


def test_the_load_counts_for_each_processor() -> None:
    """Nobody waits on an idle machine; with many tasks for each processor each waits as often."""
    assert contention(lambda: (0.0, 9.0, 9.0)) == 1
    assert contention(lambda: (640.0, 0.0, 0.0)) == 2 * contention(lambda: (320.0, 0.0, 0.0)) > 2


def test_what_is_measured_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The factor is neither below what a quiet machine gets nor beyond what anybody would wait."""
    assert slowness() >= 1
    monkeypatch.setattr("gyre_local.timeouts.contention", lambda: 1e9)
    assert timeout_factor({}) == MAX_FACTOR
    monkeypatch.setattr("gyre_local.timeouts.contention", lambda: 1e-9)
    assert timeout_factor({}) == MIN_FACTOR


@pytest.mark.parametrize("text", ["", "fast", "0", "-1", "nan", "inf"])
def test_a_factor_that_is_none_is_refused(text: str) -> None:
    """The error names the variable, its value and the rule."""
    with pytest.raises(ValueError, match=f"{VARIABLE} = '{text}': must be a finite number above 0"):
        timeout_factor({VARIABLE: text})


def test_a_deadline_follows_the_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that becomes busy during the wait gets more time, and one that becomes quiet loses none."""
    now = 100.0
    monkeypatch.setenv(VARIABLE, "1")
    deadline = Deadline(10, now=lambda: now)
    now = 115.0
    monkeypatch.setenv(VARIABLE, "2")
    assert not deadline.passed
    monkeypatch.setenv(VARIABLE, "1")
    assert (deadline.passed, deadline.limit_s, scaled(10)) == (False, 20, 10)
    now = 120.5
    assert deadline.passed


def test_a_condition_that_never_holds_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what was waited for, how long, and what was found last."""
    monkeypatch.setenv(VARIABLE, "0.5")
    with pytest.raises(AssertionError, match=r"^rain did not hold within 0\.05 s, last: 0$"):
        eventually_sync(lambda: 0, timeout_s=0.1, message="rain")


@pytest.mark.parametrize(("factor", "outcome"), [("100", "1 passed"), ("1", "Timeout")])
def test_the_timeout_of_a_test_is_multiplied(tmp_path: Path, factor: str, outcome: str) -> None:
    """A test that takes longer than its marker says passes where the factor allows it, and only there."""
    (tmp_path / "test_case.py").write_text(CASE)
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_case.py")
    ran = subprocess.run(command, cwd=tmp_path, env={VARIABLE: factor}, capture_output=True, text=True, check=False)
    assert outcome in ran.stdout
