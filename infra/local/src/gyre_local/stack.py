"""The members of the local stack and the order between them."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gyre_client.local_stack import LOOPS_RECORD

from gyre_local import probes
from gyre_local.components import kafka, mlflow, prometheus, redis, services, triton
from gyre_local.failures import LocalStackError
from gyre_local.places import REPOSITORY, StackDirectories
from gyre_local.ports import Ports
from gyre_local.recipe import Probe, Recipe

DEFAULT_LOOP = REPOSITORY / "examples" / "movies" / "gyre.yaml"
INFRA = "infra"
"""The group name that stands for all members that are not services of ours."""


@dataclass(frozen=True)
class Member:
    """One process of the stack, started or not.

    Attributes:
        name: as in ports.toml.
        prepare: writes its files and makes its recipe; starts nothing.
        probe: asks once whether it is usable.
        ports: what it listens on, by meaning.
        after: the members that must be healthy before it starts.
    """

    name: str
    prepare: Callable[[], Recipe]
    probe: Probe
    ports: Mapping[str, int]
    after: tuple[str, ...] = ()

    @property
    def is_infra(self) -> bool:
        """True for what is not a service of ours."""
        return self.name not in services.MODULES


@dataclass(frozen=True)
class Stack:
    """All members, in an order in which each comes after those it needs."""

    members: Mapping[str, Member]
    places: StackDirectories
    ports: Ports
    loops: Sequence[Path]

    def select(self, names: Iterable[str]) -> list[Member]:
        """The named members (`infra` names the whole infrastructure) in start order; all when no name is given.

        Raises:
            LocalStackError: a name is unknown.
        """
        wanted = set(names)
        unknown = wanted - set(self.members) - {INFRA}
        if unknown:
            known = ", ".join([INFRA, *self.members])
            raise LocalStackError(f"unknown: {', '.join(sorted(unknown))}. There is: {known}.")
        return [
            member
            for member in self.members.values()
            if not wanted or member.name in wanted or (INFRA in wanted and member.is_infra)
        ]


def build_stack(places: StackDirectories, ports: Ports, loops: Sequence[Path]) -> Stack:
    """The whole stack of one checkout, to serve `loops`; nothing is written, started or looked at."""
    members = [*_infrastructure(places, ports), *_services(places, ports, loops)]
    return Stack(members={member.name: member for member in members}, places=places, ports=ports, loops=loops)


def recorded_loops(places: StackDirectories) -> list[Path]:
    """The files of the loops that the stack was last brought up with; of the movies example where it never was."""
    record = places.var / LOOPS_RECORD
    return [Path(loop) for loop in json.loads(record.read_text())] if record.exists() else [DEFAULT_LOOP]


def record_loops(places: StackDirectories, loops: Sequence[Path]) -> None:
    """Write down the files of the loops, in place of earlier ones, for `recorded_loops`.

    Raises:
        LocalStackError: one of them does not exist.
    """
    for loop in loops:
        if not loop.is_file():
            raise LocalStackError(f"{loop}: there is no such loop. Remedy: name one with --loop, as in examples/.")
    places.var.mkdir(parents=True, exist_ok=True)
    (places.var / LOOPS_RECORD).write_text(json.dumps([str(loop) for loop in loops]))


def _infrastructure(places: StackDirectories, ports: Ports) -> list[Member]:
    host = ports.host
    broker, controller = ports.port("kafka", "broker"), ports.port("kafka", "controller")
    redis_port, mlflow_port = ports.port("redis", "server"), ports.port("mlflow", "http")
    triton_address = triton.TritonAddress(
        host=host,
        http=ports.port("triton", "http"),
        grpc=ports.port("triton", "grpc"),
        metrics=ports.port("triton", "metrics"),
    )
    kafka_address = kafka.BrokerAddress(host, broker=broker, controller=controller)
    prepared: list[tuple[str, Callable[[], Recipe], Probe]] = [
        (
            "mlflow",  # the slowest to start, so the first
            partial(mlflow.prepare, places.state("mlflow"), host=host, port=mlflow_port),
            partial(probes.http_ok, host, mlflow_port, "/health"),
        ),
        ("kafka", partial(kafka.prepare, places.state("kafka"), kafka_address), partial(probes.kafka, host, broker)),
        (
            "redis",
            partial(redis.prepare, places.state("redis"), host=host, port=redis_port),
            partial(probes.redis, host, redis_port),
        ),
        (
            "triton",
            partial(triton.prepare, places.state("triton"), triton_address),
            partial(probes.http_ok, host, triton_address.http, "/v2/health/ready"),
        ),
        (
            "prometheus",
            partial(prometheus.prepare, places.state("prometheus"), ports),
            partial(probes.http_ok, host, ports.port("prometheus", "http"), "/-/ready"),
        ),
    ]
    return [Member(name, prepare=prepare, probe=probe, ports=ports.of(name)) for name, prepare, probe in prepared]


NEEDS = {
    "monitor": ("kafka",),
    "features-serve": ("kafka", "redis"),
    "features-stream": ("kafka", "redis"),
    "features-archive": ("kafka",),
    "features-quality": ("kafka",),
    "features-check": ("kafka",),
    "inference": ("kafka", "triton"),
    "trainer": ("kafka", "mlflow"),
    "deployer": ("kafka", "triton", "inference"),
    "gateway": ("kafka", "features-serve", "inference"),
}
"""What is started before each service. Any order works, but this one starts without a restart or a warning."""


def _services(places: StackDirectories, ports: Ports, loops: Sequence[Path]) -> list[Member]:
    return [
        Member(
            name,
            prepare=partial(services.prepare, name, places, ports, loops=loops),
            probe=services.probe(name, ports),
            ports=ports.of(name),
            after=after,
        )
        for name, after in NEEDS.items()
    ]
