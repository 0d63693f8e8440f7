"""Masking where events are taken in: by the loop's rules, once, in place, and never without a key."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_core.keyring import Keyring
from gyre_core.spec import LoopSpec, parse_loop
from gyre_privacy.masking import LoopPrivacy, Privacy, open_privacy
from gyre_privacy.redaction import redactor as find_all
from gyre_runtime import Precondition
from gyre_runtime.constraints import checker_for
from gyre_runtime.events import Event
from gyre_runtime.settings import PrivacySettings

SPEC = """
version: 1
loop: people
events: {interactions: {click: {}}}
items:
  fields:
    title: {kind: text}
    note: {kind: text}
    seller: {kind: text}
    price: {kind: number}
    tags: {kind: categories, buckets: 8}
users:
  fields:
    phone: {kind: text}
    member: {kind: boolean}
features:
  - {name: clicks, kind: decayed_count, scope: item, events: [click], half_lives: [1d]}
"""
RULES = """
privacy:
  user_id: hmac
  fields:
    items.title: {action: redact}
    items.note: {action: drop}
    items.price: {action: drop}
    items.seller: {action: hash, domain: user}
    items.tags: {action: hash}
    users.phone: {action: drop}
    labels.session: {action: hash, key: rotating}
    labels.referrer: {action: drop}
"""
KEYS = Keyring(stable=b"s" * 32, rotating={"k1": b"r" * 32})
LOOP = parse_loop(SPEC + RULES)


def redactor(entities: Sequence[str], regions: Sequence[str]) -> Callable[[str], str]:
    """Redacts one address."""
    return lambda text: text.replace("jane@example.com", "<EMAIL_ADDRESS>")


def _text(value: str) -> behavior.FieldValue:
    return behavior.FieldValue(text=value)


def test_users_have_the_same_token_everywhere() -> None:
    """A user's id in a request, an interaction, an impression and a field of the same domain becomes one token."""
    privacy = LoopPrivacy(LOOP, KEYS, redactor)
    interaction, impression = behavior.Interaction(user_id="jane"), behavior.Impression(user_id="jane")
    item = behavior.ItemChanged(item_id="i", fields={"seller": _text("jane")})
    for message in (interaction, impression, item):
        privacy.message(message)
    tokens = {privacy.user("jane"), interaction.user_id, impression.user_id, item.fields["seller"].text}
    assert tokens == {KEYS.token("jane", domain="user")}


def test_fields_are_masked_by_their_rules() -> None:
    """Dropped fields of any kind go, texts lose what was found, hashed values become tokens, and the rest stays."""
    item = behavior.ItemChanged(item_id="i", fields={"title": _text("by jane@example.com"), "note": _text("x")})
    item.fields["price"].number = 3
    item.fields["tags"].categories.values.extend(["a", "b"])
    LoopPrivacy(LOOP, KEYS, redactor).message(item)
    assert set(item.fields) == {"title", "tags"}
    assert item.fields["title"].text == "by <EMAIL_ADDRESS>"
    assert list(item.fields["tags"].categories.values) == [KEYS.token(each, domain="items.tags") for each in "ab"]
    assert item.item_id == "i"


def test_users_are_masked_with_their_fields() -> None:
    """What is known of a user is told of their token, and keeps what no rule takes away."""
    user = behavior.UserChanged(user_id="jane", fields={"phone": _text("123")})
    user.fields["member"].boolean = True
    LoopPrivacy(LOOP, KEYS, redactor).message(user)
    assert user.user_id == KEYS.token("jane", domain="user")
    assert set(user.fields) == {"member"}


def test_labels_of_requests_and_impressions_are_masked_alike() -> None:
    """What the gateway makes of a request's labels is what a reader makes of a raw impression's."""
    privacy, given = LoopPrivacy(LOOP, KEYS, redactor), {"session": "s", "referrer": "r", "device": "tv"}
    impression = behavior.Impression(user_id="u", labels=given)
    privacy.message(impression)
    assert dict(impression.labels) == privacy.labels(given)
    assert set(impression.labels) == {"session", "device"}
    assert impression.labels["session"].startswith("hk1_")


def test_masking_twice_is_masking_once() -> None:
    """An event that was masked before, by the gateway or in an earlier life, stays as it is."""
    privacy = LoopPrivacy(LOOP, KEYS, redactor)
    events = [
        behavior.Interaction(user_id="u"),
        behavior.Impression(user_id="u", labels={"session": "s"}),
        behavior.ItemChanged(item_id="i", fields={"title": _text("jane@example.com"), "seller": _text("jane")}),
    ]
    for event in events:
        privacy.message(event)
        once = event.SerializeToString(deterministic=True)
        privacy.message(event)
        assert event.SerializeToString(deterministic=True) == once


UNITS = ("a@b.co ", "<a@b.co", "1@b.co,13800138000 ", "x", "+49 30 901820 ", "203.0.113.7 ")


@pytest.mark.parametrize("shift", range(0, 16, 3))
@pytest.mark.parametrize("unit", UNITS)
def test_what_masking_makes_longer_stays_within_the_protos_bounds(unit: str, shift: int) -> None:
    """Texts, categories and labels that are as long as they may be are so masked, too; once more changes nothing."""
    fields = {path: {"action": "redact"} for path in ("items.title", "items.note", "labels.ref")}
    privacy = LoopPrivacy(parse_loop(f"{SPEC}privacy: {json.dumps({'fields': fields})}"), None, find_all)
    short, long = ("y" * shift + unit * 128)[:128], ("y" * shift + unit * 10_000)[:10_000]
    categories = behavior.Categories(values=[short, "plain"])
    item = behavior.ItemChanged(
        item_id="i", fields={"title": _text(long), "note": behavior.FieldValue(categories=categories)}
    )
    shown = behavior.Impression(
        request_id="r", user_id="u", item_ids=["a"], shown=1, method=1, labels={"ref": short, "other": short}
    )
    for message in (item, shown):
        given = type(message).FromString(message.SerializeToString())
        assert checker_for(message.DESCRIPTOR)(message) == []
        privacy.message(message)
        assert checker_for(message.DESCRIPTOR)(message) == []
        assert (message != given) is (unit != "x")
        once = type(message).FromString(message.SerializeToString())
        privacy.message(message)
        assert message == once
    assert privacy.labels({"ref": short})["ref"] == shown.labels["ref"]
    assert "b.co" not in item.fields["title"].text


def test_a_loop_without_rules_costs_nothing() -> None:
    """Where nothing is declared there is no masking step at all, and no key is asked for."""
    plain = parse_loop(SPEC)
    assert open_privacy(PrivacySettings(), {"people": plain}).mask is None
    assert LoopPrivacy(plain).user("jane") == "jane"


def _settings(tmp_path: Path, body: str | None) -> PrivacySettings:
    path = tmp_path / "keys.json"
    if body is not None:
        path.write_text(body)
    return PrivacySettings(privacy_key_file=path)


def test_a_process_does_not_start_without_its_key(tmp_path: Path) -> None:
    """No setting, no file, a bad file, no rotating key, no redactor: each is said by name, and never the key."""
    loops = {"people": LOOP}
    with pytest.raises(Precondition, match="GYRE_PRIVACY_KEY_FILE is not set: the loop people"):
        open_privacy(PrivacySettings(), loops, redactor)
    with pytest.raises(Precondition, match=r"GYRE_PRIVACY_KEY_FILE=.*keys.json.: cannot be read: No such file"):
        open_privacy(_settings(tmp_path, None), loops, redactor)
    with pytest.raises(Precondition, match="must be JSON") as refused:
        open_privacy(_settings(tmp_path, '{"stable": "secretsecret"}'), loops, redactor)
    assert "secretsecret" not in str(refused.value)
    stable = json.dumps({"stable": "11" * 32})
    with pytest.raises(Precondition, match=r"labels\.session: the file of GYRE_PRIVACY_KEY_FILE has no rotating key"):
        open_privacy(_settings(tmp_path, stable), loops, redactor)
    keys = json.dumps({"stable": "11" * 32, "rotating": {"k1": "22" * 32}})
    with pytest.raises(Precondition, match=r"items\.title: this process cannot redact"):
        open_privacy(_settings(tmp_path, keys), loops)
    assert open_privacy(_settings(tmp_path, keys), loops, redactor).mask is not None


def test_a_process_that_keeps_only_users_needs_no_more(tmp_path: Path) -> None:
    """With `users_only` ids are hashed, and neither rotating keys nor a redactor are asked for."""
    settings = _settings(tmp_path, json.dumps({"stable": "11" * 32}))
    privacy = open_privacy(settings, {"people": LOOP}, users_only=True)
    assert privacy.mask is not None
    message = behavior.Interaction(user_id="jane")
    privacy.mask(Event("e", "s", "t", 0.0, message, None, "people.behavior.interactions", 0, 0))
    assert message.user_id.startswith("hs_")


def test_only_rules_of_the_events_own_loop_apply() -> None:
    """Two loops in one process: the ids of the one that keeps them plain stay plain."""
    other: LoopSpec = parse_loop(SPEC.replace("loop: people", "loop: plain"))
    privacy = Privacy({"people": LoopPrivacy(LOOP, KEYS, redactor), "plain": LoopPrivacy(other)})
    assert privacy.mask is not None
    for loop, kept in (("people", KEYS.token("jane", domain="user")), ("plain", "jane")):
        message = behavior.Interaction(user_id="jane")
        privacy.mask(Event("e", "s", "t", 0.0, message, None, f"{loop}.behavior.interactions", 0, 0))
        assert message.user_id == kept
