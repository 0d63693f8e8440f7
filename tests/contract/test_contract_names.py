"""Names that clients, producers and operators hold on to are frozen: renamed only with an alias for one release."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from gyre_runtime.environment import RENAMED as RENAMED_SETTINGS

ROOT = Path(__file__).parents[2]
RENAMED: dict[str, str] = {
    "metric gyre_consumer_lag{loop,topic}": "metric gyre_consumer_lag{loop,topic,group}",
    "metric gyre_deployer_reloads_total{loop,version}": "metric gyre_deployer_reloads_total{loop}",
    "metric gyre_features_events_total{loop,topic}": "metric gyre_features_events_total{loop,layout,topic}",
    "metric gyre_features_freshness_seconds{loop}": "metric gyre_features_freshness_seconds{loop,layout}",
    "metric gyre_features_parity_checked{loop}": "metric gyre_features_parity_checked{loop,layout}",
    "metric gyre_features_parity_mismatches{loop}": "metric gyre_features_parity_mismatches{loop,layout}",
    "metric gyre_features_parity_seconds{loop}": "metric gyre_features_parity_seconds{loop,layout}",
    "metric gyre_features_parity_unknown{loop}": "metric gyre_features_parity_unknown{loop,layout}",
    **{f"setting {old}": f"setting {new}" for old, new in RENAMED_SETTINGS.items()},
}
"""The old name of the contract, as its file has it, and the new one, while both are understood: for one release.

A metric that gained a label stands here, too: a query by its old labels must sum over the new one.
"""


def _contracts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("contracts", ROOT / "docs" / "contracts.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["contracts"] = module
    spec.loader.exec_module(module)
    return module


CONTRACTS = _contracts()


def test_no_name_of_the_contract_is_lost() -> None:
    """Each name of the file is still declared, or stands in RENAMED with a new one that is."""
    generator = importlib.import_module("generate")
    declared = set(CONTRACTS.contract_names(generator.variables()))
    frozen = set(CONTRACTS.NAMES_FILE.read_text().splitlines())
    assert len(frozen) > 500
    assert frozen - declared - RENAMED.keys() == set()
    assert set(RENAMED.values()) <= declared


def test_what_is_marked_as_not_served_is_not() -> None:
    """The gateway's methods that answer UNIMPLEMENTED are those that their proto says so of, and KEDA's."""
    marked = {name for name, _, served in CONTRACTS.rpcs() if not served}
    batches = {f"gyre.gateway.v1.GatewayService/{name}" for name in ("SubmitBatch", "GetBatch", "WatchBatch")}
    assert marked == batches | {name for name in marked if name.startswith("externalscaler.")}
    assert len(marked) > len(batches)


@pytest.mark.parametrize("name", [name for name, _, served in CONTRACTS.rpcs() if served])
def test_a_method_that_is_served_has_a_servicer(name: str) -> None:
    """Each served method is defined by a servicer of some service."""
    method = name.rpartition("/")[2]
    sources = "".join(path.read_text() for path in (ROOT / "services").rglob("src/**/*.py"))
    assert f"async def {method}(" in sources, name
