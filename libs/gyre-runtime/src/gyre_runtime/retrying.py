"""The one way to try again: an attempt until it succeeds or fails for good, and work that must never end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gyre_runtime.errors import is_transient
from gyre_runtime.metrics import instrument

_LOG = logging.getLogger(__name__)
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 10.0
T = TypeVar("T")


async def retry_transient(
    attempt: Callable[[], Awaitable[T]],
    *,
    what: str,
    transient: Callable[[Exception], bool] = is_transient,
    on_retry: Callable[[Exception], object] | None = None,
    wait: Callable[[float], Awaitable[object]] = asyncio.sleep,
    max_backoff_s: float = _MAX_BACKOFF_S,
) -> T:
    """Return what `attempt` returns, after as many attempts as its transient failures take, without limit.

    Args:
        attempt: called anew for each attempt.
        what: names the attempt in the log, such as `the rollout log is read`.
        transient: which failures another attempt can mend.
        on_retry: called with each transient failure, for a metric.
        wait: awaited with the back-off in seconds (0.1, doubling to `max_backoff_s`); what it raises ends the retrying.
        max_backoff_s: the longest back-off.

    Raises:
        Exception: the first failure of `attempt` that is not transient.
    """
    backoff_s = min(_FIRST_BACKOFF_S, max_backoff_s)
    while True:
        try:
            return await attempt()
        except Exception as error:
            if not transient(error):
                raise
            if on_retry is not None:
                on_retry(error)
            problem = f"{type(error).__name__}: {error}"[:200]
            _LOG.warning("trying again", extra={"what": what, "problem": problem, "in_s": backoff_s})
        await wait(backoff_s)
        backoff_s = min(backoff_s * 2, max_backoff_s)


async def restart_for_ever(name: str, work: Callable[[], Awaitable[object]]) -> None:
    """Do work that has no end; when it returns or raises all the same, log it, count it and start it again.

    It never returns. The back-off is 0.1 s at first and doubles to 10 s with each restart, however long work ran
    between.

    Args:
        name: of the task, in logs and in `gyre_task_restarts_total`.
        work: called anew for each start; only cancelling this coroutine ends it.
    """

    async def once() -> None:
        await work()
        raise RuntimeError("it returned, though it has no end")

    def restarted(error: Exception) -> None:
        instrument("gyre_task_restarts_total").add(task=name)
        _LOG.error("a background task ended: it is started again", exc_info=error, extra={"task": name})

    await retry_transient(once, what=name, transient=lambda _: True, on_retry=restarted)
