"""The sample loops that the tests share."""

from pathlib import Path

import pytest
from gyre_core.spec import LoopSpec, load_loop

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def full_loop() -> LoopSpec:
    """A loop that uses every part of the spec."""
    return load_loop(DATA / "full.yaml")


@pytest.fixture(scope="session")
def minimal_loop() -> LoopSpec:
    """A loop that leaves everything to its defaults."""
    return load_loop(DATA / "minimal.yaml")
