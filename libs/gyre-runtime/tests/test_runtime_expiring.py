"""Entries that go after their time."""

from gyre_runtime.expiring import Expiring


def test_an_entry_goes_after_its_time_as_another_is_put() -> None:
    """However many are put, none stays longer than its time; one that is put again stays so long from then on."""
    now = [0.0]
    entries = Expiring[str, int](10.0, clock=lambda: now[0])
    for at, key in ((0.0, "first"), (5.0, "again"), (9.0, "again"), (15.0, "last")):
        now[0] = at
        entries.put(key, round(at))
    assert (entries.get("first"), entries.get("again"), entries.get("last"), len(entries)) == (None, 9, 15, 2)
    now[0] = 25.1
    entries.put("newest", 25)
    assert (entries.get("again"), entries.get("last"), entries.get("newest"), len(entries)) == (None, None, 25, 1)
