"""The windows of append times in which events may repeat one another: whose clock moves them, and how far."""

from collections.abc import Iterable

import pytest
from gyre_core.append_windows import AppendWindow, AppendWindows

BEGIN = 1_370_000_000
WINDOW_S = 10
HOUR_S = 3600


def numbers(windows: AppendWindows, times: Iterable[float]) -> list[int]:
    """The windows of events that Kafka appended so long after BEGIN."""
    return [windows.reach(BEGIN + each) for each in times]


def test_a_window_follows_another() -> None:
    """Times go on window by window; a jump, however far, is one window."""
    assert numbers(AppendWindows(WINDOW_S), [0, 9.999, 10, 19, 20, 20 + 90 * HOUR_S]) == [1, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("off_s", [-2 * HOUR_S, -900 * HOUR_S, 2 * HOUR_S, 900 * HOUR_S])
def test_one_record_moves_the_windows_once_at_most(off_s: float) -> None:
    """A record whose time is hours off, among others, is no reason to forget what came just before it."""
    found = numbers(AppendWindows(WINDOW_S), [0, off_s, *(each / 1000 for each in range(2000))])
    assert set(found[2:]) <= {found[0], found[0] + 1}


def test_old_records_among_others_move_nothing_however_many_they_are() -> None:
    """Where every other record is an old one, the windows are those of the others."""
    windows = AppendWindows(WINDOW_S)
    found = [numbers(windows, [each, each - 5 * HOUR_S])[0] for each in range(0, 3000, 2)]
    assert found == [1 + each // WINDOW_S for each in range(0, 3000, 2)]


def test_windows_go_on_where_a_clock_was_ahead() -> None:
    """Once a thousand records in a row are far behind a wrong time, windows are those of the records again."""
    windows = AppendWindows(WINDOW_S)
    found = numbers(windows, [0, 9000 * HOUR_S, *range(1, 1031)])
    assert found[:2] == [1, 2]
    assert set(found[2:1002]) == {2}
    assert found[1002:] == [2 + (each // WINDOW_S - 1000 // WINDOW_S) for each in range(1001, 1031)]


def test_a_window_that_is_taken_up_again_goes_on_alike() -> None:
    """What a checkpoint holds is all that the windows follow from."""
    times = [0, *([-2 * HOUR_S] * 999), 5, *([-2 * HOUR_S] * 1000), 0, 3, 20]
    whole, taken_up, before = AppendWindows(WINDOW_S), AppendWindow(), 0
    for each in times:
        part = AppendWindows(WINDOW_S, taken_up)
        moved = part.reach(BEGIN + each)
        assert whole.reach(BEGIN + each) - before == moved
        before, taken_up = whole.number, part.window
        assert taken_up == whole.window
