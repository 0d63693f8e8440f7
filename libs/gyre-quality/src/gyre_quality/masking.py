"""Takes personal data out of a record before it goes anywhere: a field is dropped, redacted or hashed with a key.

A hash with the stable key is the same wherever the value occurs, so joins and the assignment to arms hold. A rotating
key gives other hashes each period; once its key is deleted from the file, nobody can link them to anything.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gyre_quality.pii import Scanner, covering, scanner

MaskAction = Literal["drop", "redact", "hash"]
KeyKind = Literal["stable", "rotating"]

_MIN_KEY_BYTES = 32
_TOKEN_BYTES = 16
_TOKEN = re.compile(r"^h[0-9a-z]{1,16}_[A-Za-z0-9_-]{22}$")
_STABLE_ID = "s"
_KEY_ID = re.compile(r"^[0-9a-z]{1,16}$")


@dataclass(frozen=True, slots=True)
class MaskRule:
    """What happens to one field.

    Attributes:
        field: its name.
        action: `drop` leaves the field out; `redact` replaces what the scanner finds in it by the entity's name in
            angle brackets; `hash` replaces the whole value by its keyed hash.
        key: which key hashes; `rotating` only for fields that are never joined.
        domain: fields of one domain share hashes; the field's name by default. `user` for every column of user ids.
        entities: what `redact` looks for; every personal entity when empty.
    """

    field: str
    action: MaskAction
    key: KeyKind = "stable"
    domain: str = ""
    entities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.action not in ("drop", "redact", "hash"):
            raise ValueError(f"mask.{self.field}.action = {self.action}: must be drop, redact or hash")
        if self.key not in ("stable", "rotating"):
            raise ValueError(f"mask.{self.field}.key = {self.key}: must be stable or rotating")


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of hashes: a stable one, and rotating ones by id, the greatest id in use."""

    stable: bytes = field(repr=False)
    rotating: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def from_file(cls, path: Path) -> Keyring:
        """Read `{"stable": "<hex>", "rotating": {"<id>": "<hex>"}}`.

        Raises:
            ValueError: a key is shorter than 32 bytes or no hexadecimal, or an id is not of 1 to 16 of [0-9a-z].
        """
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            stable, rotating = body["stable"], body.get("rotating", {})
            keys = {"stable": stable, **{f"rotating.{name}": key for name, key in rotating.items()}}
            read = {name: bytes.fromhex(key) for name, key in keys.items()}
        except (KeyError, TypeError, AttributeError, ValueError):
            # The cause is left out, since it could show a key.
            raise ValueError(f"{path}: must be JSON with `stable` and `rotating` keys in hexadecimal") from None
        for name, key in read.items():
            if len(key) < _MIN_KEY_BYTES:
                raise ValueError(f"{path}: {name} has {len(key)} bytes, must have at least {_MIN_KEY_BYTES}")
        for name in rotating:
            if not _KEY_ID.match(name) or name == _STABLE_ID:
                raise ValueError(f"{path}: rotating.{name}: the id must be 1 to 16 of [0-9a-z] and not {_STABLE_ID}")
        return cls(read["stable"], {name: read[f"rotating.{name}"] for name in rotating})

    def token(self, value: str, *, domain: str, key: KeyKind = "stable") -> str:
        """The hash of a value, `h<key id>_<22 characters>`: HMAC-SHA256 (RFC 2104) cut to 128 bits.

        A value that is such a token already stays as it is, so that a replayed record is not hashed twice.

        Raises:
            ValueError: there is no rotating key.
        """
        if _TOKEN.match(value):
            return value
        name, secret = (_STABLE_ID, self.stable) if key == "stable" else self._current()
        digest = hmac.digest(secret, f"{domain}\0{value}".encode(), "sha256")[:_TOKEN_BYTES]
        return f"h{name}_{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"

    def _current(self) -> tuple[str, bytes]:
        if not self.rotating:
            raise ValueError("the key file has no rotating key: must have one for rules with key = rotating")
        name = max(self.rotating)
        return name, self.rotating[name]


class Masker:
    """Applies rules to records, and counts what it did by field and entity, never by value."""

    def __init__(self, rules: Iterable[MaskRule], keys: Keyring | None = None) -> None:
        """Prepare the scanners that the rules need.

        Raises:
            ValueError: a rule hashes without a key, two rules are for one field, or an entity is unknown.
        """
        self._rules: dict[str, MaskRule] = {}
        for rule in rules:
            if rule.field in self._rules:
                raise ValueError(f"mask.{rule.field}: must have one rule")
            if rule.action == "hash" and (keys is None or (rule.key == "rotating" and not keys.rotating)):
                raise ValueError(f"mask.{rule.field}: hash needs a {rule.key} key in the key file")
            self._rules[rule.field] = rule
        self._keys = keys
        self._scanners: dict[str, Scanner] = {
            rule.field: scanner(rule.entities or None) for rule in self._rules.values() if rule.action == "redact"
        }
        self.counts: Counter[tuple[str, str]] = Counter()

    def mask(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record as it may be kept; fields without a rule and empty ones are as they were."""
        masked = {}
        for name, value in record.items():
            rule = self._rules.get(name)
            if rule is None or value is None or value == "":
                masked[name] = value
            elif rule.action == "drop":
                self.counts[name, "drop"] += 1
            else:
                masked[name] = self._masked(rule, value)
        return masked

    def _masked(self, rule: MaskRule, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: self._masked(rule, each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._masked(rule, each) for each in value]
        if rule.action == "hash" and self._keys is not None:
            self.counts[rule.field, "hash"] += 1
            return self._keys.token(str(value), domain=rule.domain or rule.field, key=rule.key)
        text = str(value)
        redacted = self.redact(rule.field, text)
        # A number keeps its type unless something was found in it.
        return value if redacted == text else redacted

    def redact(self, name: str, text: str) -> str:
        """The text of a field with `redact` with every finding replaced by its entity's name."""
        parts, end = [], 0
        for finding in covering(self._scanners[name].scan(text)):
            self.counts[name, finding.entity] += 1
            parts += [text[end : finding.start], f"<{finding.entity}>"]
            end = finding.end
        return "".join([*parts, text[end:]])
