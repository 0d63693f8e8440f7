"""Trying again: work without end is started again, an attempt is repeated while its failures are transient."""

import asyncio

import pytest
from gyre_local.timeouts import scaled
from gyre_runtime import Invalid, Unavailable
from gyre_runtime.errors import is_transient
from gyre_runtime.retrying import restart_for_ever, retry_transient
from redis._parsers.base import BaseParser


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


REPLIES = {
    "LOADING Redis is loading the dataset in memory": True,
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": True,
    "CLUSTERDOWN The cluster is down": True,
    "READONLY You can't write against a read only replica.": True,
    "OOM command not allowed when used memory > 'maxmemory'.": True,
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": True,
    "TRYAGAIN Multiple keys request during rehashing of slot": True,
    "MOVED 1 127.0.0.1:7000": True,
    "ASK 1 127.0.0.1:7000": True,
    "ERR max number of clients reached": True,
    "NOPERM this user has no permissions to run the 'set' command": True,
    "ERR The user executing the script can't run this command or subcommand script: 1, on @user_script:1.": True,
    "ERR ACL failure in script: User default has no permissions to run the 'set' command script: 1": True,
    "WRONGPASS invalid username-password pair or user is disabled.": True,
    "NOAUTH Authentication required.": True,
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.": True,
    "NOREPLICAS Not enough good replicas to write.": True,
    "WRONGTYPE Operation against a key holding the wrong kind of value": False,
    "NOSCRIPT No matching script. Please use EVAL.": False,
    "CROSSSLOT Keys in request don't hash to the same slot": False,
    "EXECABORT Transaction discarded because of previous errors.": False,
    "ERR unknown command 'HGETDEL'": False,
    "ERR value is not an integer or out of range": False,
}
"""What Redis answers, and whether it is said of Redis rather than of the command."""


@pytest.mark.parametrize(("reply", "expected"), REPLIES.items())
def test_what_redis_says_of_itself_is_transient(reply: str, expected: bool) -> None:
    """A reply about the state of Redis passes with that state, or once it is mended; one about the command does not."""
    error = BaseParser.parse_error(reply)
    assert is_transient(error) is expected
