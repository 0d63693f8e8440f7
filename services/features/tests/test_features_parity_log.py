"""The log of batches as one story: told twice, told late, begun again, and joined where only the outcome matters."""

from gyre_features.parity.log import LoggedBatch, Rebuilt, Settled, ShardLog

PLACE = ("shop.behavior.interactions", 0)
SETTLED = 10_000.0


def batch(number: int, *, time: float | None = None, first: int | None = None) -> LoggedBatch:
    """A batch of ten offsets that follow those of the number before it, a second later."""
    begin = 10 * number if first is None else first
    at = 1000.0 + number if time is None else time
    return LoggedBatch(0, number, 10, at, {PLACE: (begin, begin + 10)}, first=number)


def story(*published: LoggedBatch, settled_before: float = 0.0) -> ShardLog:
    """What the log is after some records."""
    log = ShardLog(Settled(before=settled_before))
    for each in published:
        log.add(each)
    return log


def test_a_batch_that_is_told_twice_is_one() -> None:
    """A record that says the same of the same number changes nothing, wherever it comes."""
    assert story(batch(1), batch(2), batch(1), batch(3), batch(2)).batches == [batch(1), batch(2), batch(3)]


def test_a_batch_that_is_told_late_finds_its_place() -> None:
    """Of two workers one may be told of later, at about the time of its neighbours."""
    log = story(batch(1), batch(3), batch(4), batch(2))
    assert [each.number for each in log.batches] == [1, 2, 3, 4]
    assert log.rebuilt == []


def test_numbers_that_begin_again_replace_those_of_before() -> None:
    """Where a number comes again later with other offsets, or at another time, the store had lost it."""
    again = [batch(1, time=2000.0), batch(2, time=2001.0)]
    log = story(batch(1), batch(2), batch(3), *again)
    assert log.batches == again
    assert log.rebuilt == [Rebuilt(2000.0, 1)]
    assert log.was_rebuilt(3, time=1999.0, slack_s=0)
    assert not log.was_rebuilt(2, time=2002.0, slack_s=0)
    part = story(batch(1), batch(2), batch(3), batch(3, time=2000.0, first=25))
    assert [each.applied_time for each in part.batches] == [1001.0, 1002.0, 2000.0]


def test_what_is_settled_is_joined() -> None:
    """Batches from before everything that is checked become one for each five minutes at most; newer ones stay."""
    published = [batch(1, time=0.0), *(batch(number, time=290.0 + 5 * number) for number in range(2, 5))]
    published.append(batch(5, time=SETTLED))
    log = story(*published, settled_before=SETTLED)
    assert [(each.first, each.number, each.count, each.events) for each in log.batches] == [
        (1, 2, 2, 20),
        (3, 4, 2, 20),
        (5, 5, 1, 10),
    ]
    joined = log.batches[1]
    assert (joined.ranges, joined.applied_time, joined.span_s) == ({PLACE: (30, 50)}, 310.0, 5.0)
    assert log.settled == 4


def test_only_numbers_that_every_read_is_newer_than_are_joined() -> None:
    """Without a wall clock the numbers that reads named say what was before all of them; a shard without reads is."""
    log = ShardLog(Settled(numbers={0: 2}))
    other = ShardLog(Settled(numbers={1: 2}))
    for each in (batch(1), batch(2), batch(3), batch(4)):
        log.add(each)
        other.add(each)
    assert [each.number for each in log.batches] == [2, 3, 4]
    assert [each.number for each in other.batches] == [4]


def test_joined_batches_stay_within_memory() -> None:
    """Not more is joined than can be read at once."""
    big = [LoggedBatch(0, n, 9000, 1.0 * n, {PLACE: (9000 * n, 9000 * n + 9000)}, first=n) for n in range(1, 6)]
    assert [each.count for each in story(*big, settled_before=SETTLED).batches] == [2, 2, 1]


def test_joined_batches_are_not_joined_twice() -> None:
    """A repetition of what is joined already is left out, and one that was missing is taken in."""
    whole = story(batch(1), batch(2), batch(3), batch(2), settled_before=SETTLED)
    assert [(each.count, each.events, each.is_unbroken) for each in whole.batches] == [(3, 30, True)]
    late = story(batch(1), batch(3), settled_before=SETTLED)
    assert not late.batches[0].is_unbroken
    late.add(batch(2))
    assert [(each.count, each.events, each.is_unbroken) for each in late.batches] == [(3, 30, True)]


def test_a_store_that_lost_a_part_of_what_is_joined() -> None:
    """The part that stands is known by its numbers alone, so that what came of it stays in doubt."""
    log = story(batch(1), batch(2), batch(3), batch(3, time=2000.0), settled_before=SETTLED)
    assert [(each.first, each.number, each.events) for each in log.batches] == [(1, 2, -1), (3, 3, 10)]
    assert log.rebuilt == [Rebuilt(2000.0, 3)]
