"""Where the real data lies, and samples that several tests use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_DATA = Path(os.environ.get("GYRE_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of the public data sets; skips where it is absent."""
    if not _DATA.is_dir():
        pytest.skip(f"no data sets at {_DATA}: set GYRE_DATA")
    return _DATA
