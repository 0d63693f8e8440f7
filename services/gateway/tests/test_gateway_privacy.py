"""Masking at the gateway: what it writes, asks and traces holds no raw value, and users stay themselves."""

import json
import logging
import threading
from pathlib import Path

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre.gateway.v1 import gateway_pb2 as pb
from gyre_core.keyring import Keyring
from gyre_core.topics import topic
from gyre_gateway.settings import GatewaySettings
from gyre_privacy.detection import Finding, Scanner
from gyre_runtime import Precondition
from gyre_runtime.telemetry import Telemetry
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from .conftest import StartMesh
from .test_gateway_events import read

pytestmark = pytest.mark.adapter
RULES = """
privacy:
  user_id: hmac
  fields:
    items.year: {action: drop}
    labels.note: {action: redact}
"""
RAW, MAIL = "person-of-flesh", "jane.doe@example.com"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A key file."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"stable": "ab" * 32}))
    return path


async def test_nothing_that_leaves_the_gateway_holds_a_raw_value(
    start: StartMesh, key_file: Path, kafka: str, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """Features, impressions, tracked events, spans and logs have the token; rank and track agree on it."""
    exporter = InMemorySpanExporter()
    telemetry.tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    caplog.set_level(logging.DEBUG)
    mesh = await start(more=RULES, privacy_key_file=key_file)
    await mesh.roll_out(("live", "v1", 1.0))
    context = pb.RequestContext(labels={"note": f"ask {MAIL}"})
    await mesh.rank(user=RAW, context=context, metadata=(("traceparent", CALLER),))
    click = pb.TrackedEvent(interaction=behavior.Interaction(user_id=RAW, item_id="item-1", type="click"))
    year = behavior.ItemChanged(item_id="item-1", fields={"year": behavior.FieldValue(number=1999)})
    request = pb.TrackRequest(loop=mesh.loop, events=[click, pb.TrackedEvent(item_changed=year)])
    await mesh.stub.Track(request, timeout=30)

    token = Keyring.from_file(key_file).token(RAW, domain="user")
    (asked,) = mesh.features.requests
    assert (asked.user_id, asked.labels["note"]) == (token, "ask <EMAIL_ADDRESS>")
    (shown,) = await read(kafka, topic(mesh.loop, "behavior.impressions"), 1)
    assert (shown.key, shown.message.user_id, shown.message.labels["note"]) == (token, token, "ask <EMAIL_ADDRESS>")
    (acted,) = await read(kafka, topic(mesh.loop, "behavior.interactions"), 1)
    assert (acted.key, acted.message.user_id) == (token, token)
    (changed,) = await read(kafka, topic(mesh.loop, "catalog.items"), 1)
    assert not changed.message.fields
    seen = [span.to_json() for span in exporter.get_finished_spans()] + [str(vars(each)) for each in caplog.records]
    assert any("GatewayService/Rank" in each for each in seen)
    assert not any(RAW in each or MAIL in each for each in seen)


async def test_labels_are_searched_off_the_event_loop(
    start: StartMesh, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label in which something personal may stand is searched in a thread, so that no other request waits for it."""
    mesh = await start(more=RULES, privacy_key_file=key_file)
    await mesh.roll_out(("live", "v1", 1.0))
    searched_by: set[int] = set()
    scan = Scanner.scan

    def noted(self: Scanner, text: str) -> list[Finding]:
        searched_by.add(threading.get_ident())
        return scan(self, text)

    monkeypatch.setattr(Scanner, "scan", noted)
    context = pb.RequestContext(labels={"note": f"ask {MAIL}"})
    await mesh.rank(context=context)
    await mesh.stub.Recommend(pb.RecommendRequest(loop=mesh.loop, user_id="u", limit=3, context=context), timeout=30)
    assert {asked.labels["note"] for asked in mesh.features.requests} == {"ask <EMAIL_ADDRESS>"}
    assert searched_by
    assert threading.get_ident() not in searched_by


async def test_a_user_keeps_the_arm_under_either_name(start: StartMesh, key_file: Path) -> None:
    """The raw id and its token are one user: both get the same arm and version."""
    mesh = await start(more=RULES, privacy_key_file=key_file)
    await mesh.roll_out(("live", "v1", 0.5), ("candidate", "v2", 0.5))
    keys, versions = Keyring.from_file(key_file), set()
    for number in range(12):
        raw = await mesh.rank(user=f"{RAW}-{number}")
        masked = await mesh.rank(user=keys.token(f"{RAW}-{number}", domain="user"))
        assert raw.provenance.model_version == masked.provenance.model_version
        versions.add(raw.provenance.model_version)
    assert versions == {"v1", "v2"}


async def test_the_gateway_does_not_start_without_its_key(start: StartMesh) -> None:
    """A loop that hashes and no key file: the start ends with the name of the setting."""
    assert GatewaySettings().privacy_key_file is None
    with pytest.raises(Precondition, match="GYRE_PRIVACY_KEY_FILE is not set"):
        await start(more=RULES)
