"""A loop that hashes its users: who came through the gateway and who came straight from a producer is one user."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from gyre.events.v1 import privacy_pb2 as privacy
from gyre.monitor.v1 import monitor_pb2 as pb
from gyre_core.keyring import Keyring
from gyre_local.testing import eventually
from gyre_monitor import handlers
from gyre_privacy.pseudonyms import user_hash
from gyre_runtime import Precondition
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

pytestmark = pytest.mark.adapter


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file with a key for hashes of users."""
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"stable": "ab" * 32}))
    return file


def stored_bytes(settings) -> bytes:
    """Everything in the database's files, deleted rows that are still there included."""
    files = (settings.state_dir / name for name in ("monitor.db", "monitor.db-wal"))
    return b"".join(file.read_bytes() for file in files if file.exists())


async def test_a_raw_id_is_the_user_of_its_hash(start, settings, make, key_file: Path) -> None:
    """A click that a producer sent with the raw id is credited to the answer that the gateway wrote with the hash."""
    loop_file = settings.loops[0]
    loop_file.write_text(loop_file.read_text() + "privacy: {user_id: hmac, fields: {labels.note: {action: redact}}}\n")
    with pytest.raises(Precondition, match="GYRE_PRIVACY_KEY_FILE is not set"):
        await start()
    service = await start(privacy_key_file=key_file)
    token = Keyring.from_file(key_file).token("person-of-flesh", domain="user")
    await service.send("behavior.impressions", make.impression("r1", token), key=token)
    await service.send("behavior.interactions", make.interaction("person-of-flesh"), at=make.begin + 1)

    async def credited() -> bool:
        found = await service.stub.GetExperiment(pb.GetExperimentRequest(loop=service.loop), timeout=30)
        return [(each.impressions, each.clicked) for each in found.arms] == [(1, 1)]

    await eventually(credited, timeout_s=20, message="the click is credited")


@pytest.mark.parametrize("form", ["hash", "id"])
async def test_a_forgotten_user_leaves_nothing_in_the_database(
    start, settings, make, key_file: Path, form: str
) -> None:
    """No page of the files holds what the user did, or their hash, after a tombstone; what they do later stays."""
    service = await start(privacy_key_file=key_file if form == "hash" else None)
    await service.send("behavior.impressions", make.impression("request-of-the-forgotten", "ada"), key="ada")
    await service.send("behavior.impressions", make.impression("request-of-another", "bob"), key="bob")

    def content() -> bytes:
        return stored_bytes(settings)

    await eventually(
        lambda: b"request-of-the-forgotten" in content() and b"request-of-another" in content(),
        timeout_s=60,
        message="both answers are stored",
    )
    own = key_file if form == "hash" else settings.state_dir / "user-key.json"
    hashed = user_hash(Keyring.from_file(own), service.loop, "ada")
    assert hashed in content()
    tombstone = privacy.UserForgotten(user_hash=hashed) if form == "hash" else privacy.UserForgotten(user_id="ada")
    tombstone.forgotten_time.GetCurrentTime()
    await service.send("privacy.tombstones", tombstone, key="ada")
    await eventually(lambda: b"request-of-the-forgotten" not in content(), timeout_s=60, message="the rows are gone")
    await eventually(lambda: hashed not in content(), timeout_s=60, message="the user's hash is gone")
    assert b"request-of-another" in content()
    await service.send("behavior.impressions", make.impression("request-after-that", "ada"), key="ada")
    await eventually(lambda: b"request-after-that" in content(), timeout_s=60, message="later answers are stored")


async def _export(service, request_id: str, number: int) -> None:
    """A service says that it answered a request."""
    request = otlp.ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(name="Rank", start_time_unix_nano=5)
    span.trace_id, span.span_id = number.to_bytes(16), number.to_bytes(8)
    span.attributes.add(key="gyre.request_id").value.string_value = request_id
    async with grpc.aio.insecure_channel(service.running.otlp.address) as channel:
        await otlp_grpc.TraceServiceStub(channel).Export(request, timeout=30)


async def test_no_span_names_a_request_of_a_forgotten_user(start, settings, make, key_file: Path, monkeypatch) -> None:
    """Spans of the user's requests go with the user, those that are exported later, too; of others' they stay."""
    monkeypatch.setattr(handlers, "_LATE_SPANS_S", 1.0, raising=False)
    service = await start(privacy_key_file=key_file)

    def content() -> bytes:
        return stored_bytes(settings)

    for number, (user, request_id) in enumerate((("ada", "ada-and-her-request"), ("bob", "bob-and-his-request")), 1):
        await service.send("behavior.impressions", make.impression(request_id, user), key=user)
        await _export(service, request_id, number)

    def stored() -> bool:
        with closing(sqlite3.connect(settings.state_dir / "monitor.db")) as database:
            tables = ("impressions", "spans")
            counts = [database.execute(f"select count(*) from {each}").fetchone()[0] for each in tables]
        return counts == [2, 2]

    await eventually(stored, timeout_s=60, message="answers and spans are stored")
    tombstone = privacy.UserForgotten(user_hash=user_hash(Keyring.from_file(key_file), service.loop, "ada"))
    tombstone.forgotten_time.GetCurrentTime()
    await service.send("privacy.tombstones", tombstone, key="ada")
    await eventually(lambda: b"ada-and-her" not in content(), timeout_s=60, message="the spans of the request are gone")
    assert b"bob-and-his" in content()
    await _export(service, "ada-and-her-request", 3)
    await eventually(lambda: b"ada-and-her" not in content(), timeout_s=60, message="the late span is gone")


def span_of(number: int) -> trace.Span:
    """The sampled span that `_export` writes."""
    return trace.NonRecordingSpan(trace.SpanContext(number, number, is_remote=True, trace_flags=trace.TraceFlags(1)))


def count(settings, table: str) -> int:
    """Rows of a table."""
    with closing(sqlite3.connect(settings.state_dir / "monitor.db")) as database:
        found: int = database.execute(f"select count(*) from {table}").fetchone()[0]
    return found


@pytest.mark.parametrize("answer", ["let go", "simulated", "unnamed"])
async def test_spans_go_whose_answer_is_not_stored(start, settings, make, key_file: Path, answer: str) -> None:
    """Spans go with their user also where the answer that leads to them was let go, simulated, or has another id."""
    service = await start(privacy_key_file=key_file)

    def content() -> bytes:
        return stored_bytes(settings)

    for number, user in enumerate(("ada", "bob"), 1):
        await _export(service, f"{user}-and-the-request", number)
        request_id = f"{user}-and-the-request" if answer != "unnamed" else f"request-{number}"
        shown = make.impression(request_id, user, simulated=answer == "simulated")
        with trace.use_span(span_of(number)):
            await service.send("behavior.impressions", shown, key=user)
    click = make.interaction("bob", request_id="the-last")
    await service.send("behavior.interactions", click, key="bob", at=make.begin + 1)
    await service.send("behavior.interactions", make.interaction("ada"), key="ada", at=make.begin + 1)
    await eventually(lambda: count(settings, "interactions") == 2, timeout_s=60, message="all events are stored")
    await eventually(lambda: count(settings, "spans") == 2, timeout_s=60, message="the spans are stored")
    if answer == "let go":
        with closing(sqlite3.connect(settings.state_dir / "monitor.db", timeout=30)) as database:
            database.execute("delete from impressions")  # as the bound of the table does
            database.commit()
    tombstone = privacy.UserForgotten(user_hash=user_hash(Keyring.from_file(key_file), service.loop, "ada"))
    tombstone.forgotten_time.GetCurrentTime()
    await service.send("privacy.tombstones", tombstone, key="ada")
    await eventually(lambda: count(settings, "interactions") == 1, timeout_s=60, message="the user is erased")
    await eventually(lambda: b"ada-and-the" not in content(), timeout_s=20, message="the spans of the user are gone")
    assert b"bob-and-the" in content()


async def test_a_tombstone_in_a_new_topic_erases(start, settings, make, key_file: Path) -> None:
    """Tombstones are known by time and place: one in a topic made anew erases, and each does so once."""
    keyring = Keyring.from_file(key_file)
    service = await start(privacy_key_file=key_file)

    async def forget(user: str) -> None:
        tombstone = privacy.UserForgotten(user_hash=user_hash(keyring, service.loop, user))
        tombstone.forgotten_time.GetCurrentTime()
        await service.send("privacy.tombstones", tombstone, key=user)

    await service.send("behavior.impressions", make.impression("of-the-first", "eve"), key="eve")
    await eventually(lambda: count(settings, "impressions") == 1, timeout_s=60, message="the answer is stored")
    await forget("eve")
    await eventually(lambda: count(settings, "impressions") == 0, timeout_s=60, message="the user is erased")
    with closing(sqlite3.connect(settings.state_dir / "monitor.db", timeout=30)) as database:
        # The topic was longer before it was made anew: what a former release stored of it says so.
        database.execute(
            "insert or replace into offsets (topic, partition, next_offset, count_from) values (?, 0, 1000, 0)",
            (f"{service.loop}.privacy.tombstones",),
        )
        database.commit()
    await service.send("behavior.impressions", make.impression("of-the-second", "ada"), key="ada")
    await service.send("behavior.impressions", make.impression("of-the-first-again", "eve"), key="eve")
    await eventually(lambda: count(settings, "impressions") == 2, timeout_s=60, message="the answers are stored")
    await forget("ada")
    await eventually(lambda: count(settings, "impressions") == 1, timeout_s=60, message="the second user is erased")
    await service.lifespan.__aexit__(None, None, None)
    again = await start(privacy_key_file=key_file)
    await again.send("behavior.impressions", make.impression("of-the-third", "kim"), key="kim")
    await eventually(lambda: count(settings, "impressions") == 2, timeout_s=60, message="the monitor goes on")
    with closing(sqlite3.connect(settings.state_dir / "monitor.db")) as database:
        stored = {each for (each,) in database.execute("select request_id from impressions")}
    assert stored == {"of-the-first-again", "of-the-third"}
