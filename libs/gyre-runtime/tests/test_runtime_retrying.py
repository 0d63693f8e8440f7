"""Trying again: work without end is started again, an attempt is repeated while its failures are transient."""

import asyncio

import pytest
from gyre_local.timeouts import scaled
from gyre_runtime import Invalid, Unavailable
from gyre_runtime.errors import is_transient
from gyre_runtime.retrying import restart_for_ever, retry_transient
from redis.exceptions import AuthenticationError, BusyLoadingError, MovedError, NoScriptError, OutOfMemoryError
from redis.exceptions import ResponseError as Reply


async def test_work_without_end_is_started_again() -> None:
    """Work that returns or fails, though it has no end, is started again until it is cancelled."""
    starts: list[int] = []
    goes_on = asyncio.Event()

    async def work() -> None:
        starts.append(len(starts))
        if len(starts) == 1:
            raise KeyError("bug")
        if len(starts) == 3:
            goes_on.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(restart_for_ever("work", work))
    async with asyncio.timeout(scaled(20)):
        await goes_on.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert starts == [0, 1, 2]


async def test_only_transient_failures_are_tried_again() -> None:
    """An attempt is repeated with growing back-offs until it succeeds, or raises what no repetition mends."""
    waits: list[float] = []
    outcomes: list[object] = [Unavailable("AWAY", "away"), Unavailable("AWAY", "away"), 7, Invalid("BAD", "bad")]

    async def attempt() -> object:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    assert await retry_transient(attempt, what="test", wait=wait) == 7
    assert waits == [0.1, 0.2]
    with pytest.raises(Invalid):
        await retry_transient(attempt, what="test", wait=wait)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemoryError("command not allowed"), True),
        (BusyLoadingError("loading"), True),
        (MovedError("1 127.0.0.1:7000"), True),
        (AuthenticationError("invalid password"), True),
        (Reply("BUSY Redis is busy running a script"), True),
        (Reply("MISCONF Redis is configured to save snapshots"), True),
        (Reply("WRONGTYPE Operation against a key"), False),
        (NoScriptError("no matching script"), False),
    ],
)
def test_what_redis_says_of_itself_is_transient(error: Exception, expected: bool) -> None:
    """A reply about the state of Redis passes with that state; one about the command does not."""
    assert is_transient(error) is expected
