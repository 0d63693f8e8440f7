"""Keys of the online store, for ids that look like parts of keys."""

from __future__ import annotations

import re

from gyre_core import keys
from hypothesis import given
from hypothesis import strategies as st

PARTS = ["u1", "x", ":", "{", "}", "*", "\n", "item", "user", "global", "shop", "gyre2", "0", "versions", "a" * 16, "/"]
IDS = st.lists(st.sampled_from(PARTS), max_size=10).map("".join) | st.text(max_size=12)
KINDS = st.sampled_from(["item", "user", "global"])
LOOPS = st.sampled_from(["shop", "user", "item", "global", "versions"])
LAYOUTS = st.sampled_from(["a" * 16, "0123456789abcdef"])


def _matches(pattern: str, key: str) -> bool:
    """What Redis answers for the few signs that `entity_pattern` uses."""
    parts = re.findall(r"\\.|\*|[^\\*]+|\\", pattern, re.DOTALL)
    regex = "".join(".*" if part == "*" else re.escape(part.removeprefix("\\")) for part in parts)
    return re.fullmatch(regex, key, re.DOTALL) is not None


@given(LOOPS, LAYOUTS, st.integers(0, 99), KINDS, IDS, st.tuples(LOOPS, KINDS, IDS))
def test_a_key_is_of_one_entity_alone(
    loop: str, layout: str, shard: int, kind: str, id_: str, other: tuple[str, str, str]
) -> None:
    """Whatever colons, braces and names of kinds ids hold, a key is that of its own entity and of no other."""
    for make in (keys.entity_key, keys.former_entity_key):
        key = make(loop, layout, shard=shard, kind=kind, id=id_)
        assert keys.is_entity_key(key, loop, kind=kind, id=id_)
        assert _matches(keys.entity_pattern(loop, kind=kind, id=id_), key)
        assert keys.is_entity_key(key, other[0], kind=other[1], id=other[2]) == (other == (loop, kind, id_))


@given(LOOPS, LAYOUTS, KINDS, KINDS, IDS, IDS)
def test_no_end_of_an_id_is_taken_for_another_id(
    loop: str, layout: str, kind: str, found: str, start: str, id_: str
) -> None:
    """A key that only ends like that of another entity is not its key, nor are an item's versions."""
    whole = f"{start}:{found}:{id_}"
    made = [make(loop, layout, shard=0, kind=kind, id=whole) for make in (keys.entity_key, keys.former_entity_key)]
    made.append(keys.versions_key(loop, layout, shard=0, id=whole))
    assert not [key for key in made if keys.is_entity_key(key, loop, kind=found, id=id_)]
