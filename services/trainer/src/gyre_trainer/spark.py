"""The attribution join on Spark, over the same Iceberg tables: `spark-submit spark.py PLAN FOLDER`.

A cluster has neither this package nor its dependencies, so this file imports nothing of them: `python -m gyre_trainer
plan LOOP` writes the plan, which holds the one SQL text and the tables' metadata and snapshots. The folder gets Parquet
files with the impressions' own columns, packed features included, and a map of the items that got a label.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_PLACE = "shiftleft(cast(kafka_partition as bigint), 48) + kafka_offset"
_VIEWS = {
    "impressions": f"{_PLACE} as place, source, event_id, kafka_partition, kafka_offset,"
    " unix_micros(event_time) as event_us, request_id, user_id, item_ids, size(item_ids) as items",
    "interactions": "source, event_id, kafka_partition, kafka_offset, unix_micros(event_time) as event_us,"
    " unix_micros(ingest_time) as ingest_us, request_id, user_id, item_id, type",
}
_LABELLED = """
select place as label_place, map_from_entries(collect_list(struct(item_id, relevance))) as relevance,
  sum(late) as late from labels group by place
"""


def run(spark: Any, plan: dict[str, Any], folder: str) -> None:
    """Join as a plan says and write the result.

    Args:
        spark: a session with Iceberg's runtime.
        plan: as `python -m gyre_trainer plan` prints it.
        folder: where the files go; it must not exist.
    """
    for name, table in plan["tables"].items():
        rows = spark.read.format("iceberg").option("snapshot-id", str(table["snapshot"])).load(table["metadata"])
        rows.createOrReplaceTempView(f"{name}_rows")
        spark.sql(f"select {_VIEWS[name]} from {name}_rows").createOrReplaceTempView(name)  # noqa: S608 - constants
    spark.sql(plan["labels"]).createOrReplaceTempView("labels")
    shown = spark.table("impressions_rows").selectExpr(*plan["columns"], f"{_PLACE} as place")
    labelled = spark.sql(_LABELLED)
    joined = shown.join(labelled, shown["place"] == labelled["label_place"]).drop("label_place")
    joined.orderBy("event_time", "place").write.parquet(folder)


def main() -> None:
    """Run on the session that `spark-submit` gives."""
    from pyspark.sql import SparkSession  # type: ignore[import-not-found]  # only a cluster has it

    if len(sys.argv) != 3:
        sys.exit("usage: spark-submit spark.py PLAN FOLDER")
    spark = SparkSession.builder.appName("gyre-attribution").getOrCreate()
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    run(spark, json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2])
    spark.stop()


if __name__ == "__main__":
    main()
