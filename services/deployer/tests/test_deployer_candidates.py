"""Candidates that were announced: a log that does not take a write loses none, and none ends the deployer."""

import asyncio
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from gyre.events.v1.models_pb2 import CandidateRegistered
from gyre_core.features import Layout
from gyre_core.models import GOLDEN_FILE, MANIFEST_FILE
from gyre_core.spec import LoopSpec
from gyre_deployer.adapters.artifacts import ArtifactFolders
from gyre_deployer.adapters.views import KafkaCandidates
from gyre_deployer.ports import CandidateRefused
from gyre_deployer.wire import candidate_message, candidate_of
from gyre_runtime import Unavailable

from .conftest import Models
from .fakes import WAY_UP, Process, World, told


@dataclass
class Record:
    """A record of the topic of candidates, as the view hands it over."""

    message: CandidateRegistered
    offset: int
    traceparent: str | None = None


class Announced:
    """The deployer's own view of the topic, fed as Kafka would feed it."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.records: list[Record] = []
        self.view = KafkaCandidates("127.0.0.1:1", world.spec.loop, start=0, on_arrival=lambda: None)
        process.ledger.candidates = process.reconciler._waiting.candidates = self.view

    def announce(self, version: str) -> None:
        """Append a candidate to the topic."""
        self.records.append(Record(candidate_message(self.world.register(version)), len(self.records)))
        self.view._take("", self.records[-1])

    def read_again(self) -> None:
        """Read the topic from its start, as after an error."""
        for record in self.records:
            self.view._take("", record)


@pytest.mark.parametrize("is_written", [False, True])
async def test_a_candidate_is_kept_where_the_write_that_begins_its_rollout_fails(
    world: World, is_written: bool
) -> None:
    """Whether the write happened or not, its rollout begins once, and the topic counts as decided only then."""
    process = Process.begin(world)
    topic = Announced(world, process)
    topic.announce("v1")
    for _ in range(8):
        await process.look()
    assert told(world, "v1") == [*WAY_UP[:4], ("PROMOTED", 1.0)]
    topic.announce("v2")
    world.failure = Unavailable
    world.failing_call = world.calls + (2 if is_written else 1)
    undecided = [world.views[-1].candidates_offset]
    world.on_failure = lambda: undecided.append(world.views[-1].candidates_offset)
    for _ in range(8):
        await process.look()
        topic.read_again()
        world.serve("v1", 1)
    assert undecided == [1, 2 if is_written else 1]
    assert told(world, "v2") == WAY_UP[:5]
    assert world.views[-1].candidates_offset == 2
    assert topic.view.all() == []


async def test_what_a_snapshot_leaves_out_waits_no_more(world: World) -> None:
    """Candidates that are refused in a write whose snapshot forgets them are neither named nor rolled out."""
    process = Process.begin(world)
    process.ledger._max_ended = 1
    world.filling["f" * 16] = "ffff is being filled: 0 %"
    for version in ("v1", "v2", "v3", "v4"):
        world.register(version, layout="f" * 16)
    await process.look()
    assert [each.version for each in world.views[-1].models] == ["v1", "v2", "v3", "v4"]
    world.now += 601
    await process.look()
    assert [kind for version in ("v1", "v2", "v3", "v4") for kind, _ in told(world, version)] == ["REFUSED"] * 4
    assert [each.version for each in world.views[-1].models] == []
    world.filling["f" * 16] = ""
    for life in (process, Process.begin(world)):
        await life.look()
        await life.look()
        assert len(life.ledger.state.rollouts) == 1
    assert len(world.log) == 4


def packed(member: bytes) -> bytes:
    """Golden requests and answers whose arrays are these bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("features.npy", "scores.npy"):
            archive.writestr(name, member)
    return content.getvalue()


def header(rows: int) -> bytes:
    """An array of so many rows without any."""
    content = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, 3)}
    np.lib.format.write_array_header_1_0(content, shape)  # type: ignore[no-untyped-call]
    return content.getvalue()


def one_array(_: bytes) -> bytes:
    """An array where a file of several is due."""
    content = io.BytesIO()
    np.save(content, np.zeros((2, 2), np.float32))
    return content.getvalue()


def encrypted(good: bytes) -> bytes:
    """A flipped bit that says that it needs a password."""
    at = good.find(b"PK\x01\x02") + 8
    return good[:at] + bytes([good[at] | 1]) + good[at + 1 :]


def bomb(_: bytes) -> bytes:
    """A small file that is 100 MB of zeros when it is unpacked."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("features.npy", "scores.npy"):
            archive.writestr(name, header(4_000_000) + bytes(48_000_000))
    return content.getvalue()


BAD_FILES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "one array": (GOLDEN_FILE, one_array),
    "encrypted": (GOLDEN_FILE, encrypted),
    "10^13 rows": (GOLDEN_FILE, lambda _: packed(header(10**13))),
    "no arrays": (GOLDEN_FILE, lambda _: packed(b"text")),
    "bomb": (GOLDEN_FILE, bomb),
    "nested manifest": (MANIFEST_FILE, lambda _: b"[" * 100_000),
    "manifest in another encoding": (MANIFEST_FILE, lambda good: json.dumps(json.loads(good)).encode() + b"\xff"),
}


@pytest.mark.parametrize("what", BAD_FILES)
async def test_an_artefact_of_any_content_refuses_its_candidate_alone(
    spec: LoopSpec, tmp_path: Path, what: str
) -> None:
    """Whatever stands in a file, reading it says that the candidate is refused, and raises nothing else."""
    announced = Models(Layout.compile(spec), tmp_path, kafka="").make("v1")
    name, spoil = BAD_FILES[what]
    path = Path(announced.artifact_uri) / name
    path.write_bytes(spoil(path.read_bytes()))
    assert await outcome(announced) == "refused"


async def test_any_flipped_bit_of_the_golden_requests_is_read_or_refused(spec: LoopSpec, tmp_path: Path) -> None:
    """Each byte of the file with a bit flipped leads to a refusal or to golden requests, and to no other error."""
    announced = Models(Layout.compile(spec), tmp_path, kafka="").make("v1")
    path = Path(announced.artifact_uri) / GOLDEN_FILE
    good = path.read_bytes()
    found = set()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        found.add(await outcome(announced))
    assert found == {"read", "refused"}


@pytest.mark.parametrize("uri", ["file://[", "/a\0b", "file://localhost/%00", "/" + "x" * 4000])
async def test_a_location_of_any_content_refuses_its_candidate_alone(spec: LoopSpec, tmp_path: Path, uri: str) -> None:
    """A location that no file can have says that the candidate is refused, and raises nothing else."""
    announced = Models(Layout.compile(spec), tmp_path, kafka="").make("v1")
    announced.artifact_uri = uri
    assert await outcome(announced) == "refused"


async def outcome(announced: CandidateRegistered) -> str:
    """What becomes of a candidate whose files are read: `read`, `refused`, or the error that nobody expects."""
    [found] = await asyncio.gather(ArtifactFolders().read(candidate_of(announced)), return_exceptions=True)
    if isinstance(found, CandidateRefused):
        return "refused"
    return repr(found) if isinstance(found, BaseException) else "read"
