"""Runs in Feast's own environment: declares two feature views on Redis and writes rows of them from Parquet files.

`python feast_repository.py DIRECTORY`, where the directory holds `feature_store.yaml` and for each view `NAME.parquet`:
the column `NAME_id`, one float column for each feature, and `event_timestamp`.
"""

import sys
from datetime import timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float32

VIEWS = ("item", "user")
SERVICE = "ranking"
_KEPT = timedelta(days=1)


def main(directory: Path) -> None:
    """Declare the views and fill the online store."""
    store = FeatureStore(repo_path=str(directory))
    frames = {name: pd.read_parquet(directory / f"{name}.parquet") for name in VIEWS}
    views = {name: _view(directory, name, frame) for name, frame in frames.items()}
    entities = [entity for view in views.values() for entity in view[0]]
    declared = [view for _, view in views.values()]
    service = FeatureService(name=SERVICE, features=declared)
    store.apply([*entities, *declared, service])
    for name, frame in frames.items():
        store.write_to_online_store(name, frame)


def _view(directory: Path, name: str, frame: pd.DataFrame) -> tuple[list[Entity], FeatureView]:
    key = f"{name}_id"
    entity = Entity(name=name, join_keys=[key], value_type=ValueType.STRING)
    schema = [Field(name=each, dtype=Float32) for each in frame.columns if each not in (key, "event_timestamp")]
    source = FileSource(path=str(directory / f"{name}.parquet"), timestamp_field="event_timestamp")
    return [entity], FeatureView(name=name, entities=[entity], ttl=_KEPT, schema=schema, source=source)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
