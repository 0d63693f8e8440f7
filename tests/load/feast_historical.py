"""Runs in Feast's own environment: its point-in-time join of what was done with what was shown, from Parquet files.

`python feast_historical.py DIRECTORY WINDOW_S`, where the directory holds `shown.parquet` (touch_id, event_timestamp,
impression) and `acted.parquet` (touch_id, event_timestamp). Prints count of impressions found, seconds and peak memory.
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Int64

CONFIG = """
project: bench
provider: local
registry: registry.db
offline_store: {type: file}
online_store: {type: sqlite, path: online.db}
entity_key_serialization_version: 3
"""


def main(directory: Path, window_s: float) -> None:
    """Declare the view, join, print."""
    (directory / "feature_store.yaml").write_text(CONFIG, encoding="utf-8")
    store = FeatureStore(repo_path=str(directory))
    write = Entity(name="touch", join_keys=["touch_id"], value_type=ValueType.STRING)
    source = FileSource(path=str(directory / "shown.parquet"), timestamp_field="event_timestamp")
    schema = [Field(name="impression", dtype=Int64)]
    window = timedelta(seconds=window_s)
    store.apply([write, FeatureView(name="shown", entities=[write], ttl=window, schema=schema, source=source)])
    acted = pd.read_parquet(directory / "acted.parquet")
    started = time.perf_counter()
    found = store.get_historical_features(entity_df=acted, features=["shown:impression"]).to_df()
    seconds = time.perf_counter() - started
    (high,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    told = {
        "labelled": int(found["impression"].nunique()),
        "seconds": seconds,
        "peak_bytes": int(high.split()[1]) * 1024,
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
