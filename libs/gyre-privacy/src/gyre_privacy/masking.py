"""Masks what events and requests say of people, by a loop's rules, where they are taken in and before anything else.

Masking twice is masking once: a token stays as it is, and a redacted text holds nothing more to find. So it does not
matter that the gateway masks what it writes and every reader of raw events masks again. What a placeholder makes longer
than the proto allows is cut, so that who masks next does not refuse it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gyre.events.v1 import behavior_pb2 as behavior
from gyre.events.v1.behavior_pb2 import FieldValue as FieldMessage
from gyre_core.keyring import USER_DOMAIN, Keyring
from gyre_core.spec import LoopSpec, MaskRule
from gyre_runtime.constraints import max_length
from gyre_runtime.errors import Misconfigured
from gyre_runtime.events import Event
from gyre_runtime.metrics import instrument
from gyre_runtime.settings import PREFIX, PrivacySettings

from gyre_privacy.gates import may_hold_personal_data
from gyre_privacy.plain import plain

Redact = Callable[[str], str]
RedactorOf = Callable[[Sequence[str], Sequence[str]], Redact]
"""Makes what redacts texts, by the entities and the regions looked for."""
_Change = Callable[[str, int], str | None]
"""What becomes of a text that may have so many characters."""
_TEXT_CHARS = max_length(FieldMessage.DESCRIPTOR, "text")
_CATEGORY_CHARS = max_length(behavior.Categories.DESCRIPTOR, "values")
_LABEL_CHARS = max_length(behavior.Impression.DESCRIPTOR, "labels")
_BEGUN_PLACEHOLDER = re.compile(r"<[A-Z0-9_]*\Z")
_CUT_FURTHER = 8
_ITEMS, _USERS, _LABELS = "items.", "users.", "labels."
OF_USERS = behavior.Interaction | behavior.Impression | behavior.UserChanged
"""The payloads that are of one user, by `user_id`."""
_KEY_VARIABLE = f"{PREFIX}PRIVACY_KEY_FILE"


class LoopPrivacy:
    """The rules of one loop, ready to be applied; each value that is changed counts in `gyre_privacy_masked_total`.

    A field without a rule stays as it is.

    Args:
        spec: the loop.
        keys: for hashes; needed where a rule hashes.
        redactor: for texts; needed where a rule redacts. None with `users_only`.
        users_only: whether only user ids are masked, for a process that keeps nothing else of people.

    Attributes:
        masks: whether there is any rule.
        redacts: whether a rule searches texts.

    Raises:
        Misconfigured: a rule needs a key, or a redactor, that there is not, or looks for an unknown entity.
    """

    def __init__(
        self,
        spec: LoopSpec,
        keys: Keyring | None = None,
        redactor: RedactorOf | None = None,
        *,
        users_only: bool = False,
    ) -> None:
        self._loop, self._keys, self._regions = spec.loop, keys, spec.privacy.regions
        self._hashes_users = spec.privacy.user_id == "hmac"
        rules = {} if users_only else spec.privacy.fields
        if keys is None and (self._hashes_users or any(rule.action == "hash" for rule in rules.values())):
            message = f"{_KEY_VARIABLE} is not set: the loop {spec.loop} hashes by key"
            raise Misconfigured("PRIVACY_KEY_MISSING", message)
        made = {path: self._change(path, rule, redactor) for path, rule in rules.items()}
        self._items = {path.removeprefix(_ITEMS): each for path, each in made.items() if path.startswith(_ITEMS)}
        self._users = {path.removeprefix(_USERS): each for path, each in made.items() if path.startswith(_USERS)}
        self._labels = {path.removeprefix(_LABELS): each for path, each in made.items() if path.startswith(_LABELS)}
        self.masks = self._hashes_users or bool(rules)
        self.redacts = any(rule.action == "redact" for rule in rules.values())
        searched = (path for path, rule in rules.items() if rule.action == "redact" and path.startswith(_LABELS))
        self._searched_labels = frozenset(path.removeprefix(_LABELS) for path in searched)

    def _change(self, path: str, rule: MaskRule, redactor: RedactorOf | None) -> _Change:
        """What becomes of a value of a field."""
        count = instrument("gyre_privacy_masked_total").bind(loop=self._loop, field=path, action=rule.action)
        apply: _Change = _dropped
        if rule.action == "redact":
            apply = self._redact(path, rule, redactor)
        elif rule.action == "hash":
            apply = self._hash(path, rule)

        def change(value: str, max_chars: int) -> str | None:
            changed = apply(value, max_chars)
            if changed != value:
                count(1)
            return changed

        return change

    def _hash(self, path: str, rule: MaskRule) -> _Change:
        keys, domain = self._keys, rule.domain or path
        if keys is None or (rule.key == "rotating" and not keys.rotating):
            message = f"privacy.fields.{path}: the file of {_KEY_VARIABLE} has no {rule.key} key"
            raise Misconfigured("PRIVACY_KEY_MISSING", message)
        return lambda value, _: keys.token(value, domain=domain, key=rule.key) if value else value

    def _redact(self, path: str, rule: MaskRule, redactor: RedactorOf | None) -> _Change:
        if redactor is None:
            raise Misconfigured("REDACTION_MISSING", f"privacy.fields.{path}: this process cannot redact")
        try:
            redact = redactor(rule.entities, self._regions)
        except ImportError as error:
            message = f"privacy.fields.{path}: its entities need gyre-privacy[presidio], which is not installed"
            raise Misconfigured("REDACTION_MISSING", message) from error
        except ValueError as error:
            raise Misconfigured("PRIVACY_RULE_INVALID", f"privacy.fields.{path}: {error}") from error
        return lambda value, max_chars: _redacted_within(redact, value, max_chars)

    def user(self, user_id: str) -> str:
        """A user's id as the loop keeps it: its token where the loop hashes ids, else itself; a token stays one."""
        if not self._hashes_users or not user_id or self._keys is None:
            return user_id
        return self._keys.token(user_id, domain=USER_DOMAIN)

    def labels(self, labels: Mapping[str, str]) -> Mapping[str, str]:
        """The labels of a request's context as the loop keeps them, without those it drops; the given ones stay.

        Searching takes up to a millisecond for each text: see `labels_aside`.
        """
        if not self._labels or not labels:
            return labels
        masked = {
            name: self._labels[name](value, _LABEL_CHARS) if name in self._labels else value
            for name, value in labels.items()
        }
        return {name: value for name, value in masked.items() if value is not None}

    async def labels_aside(self, labels: Mapping[str, str]) -> Mapping[str, str]:
        """The labels as `labels` gives them, off the event loop where one of them has to be searched.

        That takes up to a millisecond for each text. A look at its signs shows of most texts that there is nothing to
        search for, and costs less than a thread.
        """
        searched = (plain(labels[name]) for name in self._searched_labels if name in labels)
        if any(map(may_hold_personal_data, searched)):
            return await asyncio.to_thread(self.labels, labels)
        return self.labels(labels)

    def message(self, message: Any) -> None:
        """Mask the payload of a raw event (interaction, impression, change of item or user) in place; leave others."""
        if isinstance(message, OF_USERS) and self._hashes_users:
            message.user_id = self.user(message.user_id)
        if isinstance(message, behavior.Impression) and self._labels and message.labels:
            kept = dict(self.labels(message.labels))
            message.labels.clear()
            message.labels.update(kept)
        if isinstance(message, behavior.ItemChanged | behavior.UserChanged):
            rules = self._items if isinstance(message, behavior.ItemChanged) else self._users
            for name in rules.keys() & message.fields.keys():
                if not _masked(message.fields[name], rules[name]):
                    del message.fields[name]


def _dropped(_value: str, _max_chars: int) -> None:
    """Leave a value out."""


def _redacted_within(redact: Redact, text: str, max_chars: int) -> str:
    """A redacted text of at most so many characters; once more changes nothing.

    A text is cut after it was redacted, so that no half of what was found is left, and what the cut has made is
    searched again: its end can look like something else.
    """
    text, limit = redact(text), max_chars
    while len(text) > max_chars:
        text = redact(_BEGUN_PLACEHOLDER.sub("", text[:limit]))
        limit = limit * (_CUT_FURTHER - 1) // _CUT_FURTHER
    return text


def _masked(field: FieldMessage, change: _Change) -> bool:
    """Mask the texts of a field in place; say whether it stays. What is no text is only ever dropped."""
    kind = field.WhichOneof("kind")
    if kind == "categories":
        kept = [made for value in field.categories.values if (made := change(value, _CATEGORY_CHARS)) is not None]
        if len(kept) < len(field.categories.values) or change("", _CATEGORY_CHARS) is None:
            return False
        field.categories.values[:] = kept
        return True
    text = change(field.text, _TEXT_CHARS)
    if text is not None and kind == "text":
        field.text = text
    return text is not None


class Privacy:
    """The rules of all loops that a process serves."""

    def __init__(self, loops: Mapping[str, LoopPrivacy]) -> None:
        self._loops = dict(loops)
        self._masking = any(each.masks for each in self._loops.values())

    def __getitem__(self, loop: str) -> LoopPrivacy:
        """The rules of one loop; KeyError for a loop that this process does not serve."""
        return self._loops[loop]

    @property
    def redacts(self) -> bool:
        """Whether a loop's texts are searched, which takes milliseconds a text."""
        return any(each.redacts for each in self._loops.values())

    @property
    def mask(self) -> Callable[[Event], None] | None:
        """The function that masks a decoded event in place, for `ConsumerOptions`; None where no loop has rules.

        Events of loops that this process does not serve stay as they are.
        """
        return self._mask if self._masking else None

    def _mask(self, event: Event) -> None:
        loop = self._loops.get(event.topic.partition(".")[0])
        if loop is not None:
            loop.message(event.message)


def open_privacy(
    settings: PrivacySettings,
    loops: Mapping[str, LoopSpec],
    redactor: RedactorOf | None = None,
    *,
    users_only: bool = False,
) -> Privacy:
    """Read the keys that the loops need, and prepare their rules; see `LoopPrivacy` for the arguments.

    Raises:
        Misconfigured: a loop hashes and there is no key file (PRIVACY_KEY_MISSING) or none that can be read
            (PRIVACY_KEY_INVALID), or redacts and this process cannot (REDACTION_MISSING).
    """
    keys = read_keyring(settings)  # also where no loop hashes: a file that holds no keys stops the start
    return Privacy({name: LoopPrivacy(spec, keys, redactor, users_only=users_only) for name, spec in loops.items()})


def read_keyring(settings: PrivacySettings) -> Keyring | None:
    """The keys of the file that the settings name; None where they name none.

    Raises:
        Misconfigured: the file cannot be read (PRIVACY_KEY_INVALID).
    """
    if settings.privacy_key_file is None:
        return None
    try:
        return Keyring.from_file(settings.privacy_key_file)
    except (OSError, ValueError) as error:
        path = settings.privacy_key_file
        rule = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        message = f"{_KEY_VARIABLE}={str(path)!r}: {rule.removeprefix(f'{path}: ')}"
        raise Misconfigured("PRIVACY_KEY_INVALID", message) from None
