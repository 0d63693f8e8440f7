"""A loop's work that is done by one consumer whose store knows where to begin."""

from collections.abc import Awaitable, Callable

from gyre_runtime.checkpoints import Batch
from gyre_runtime.kafka.consumer import Consumer


class ConsumerWork:
    """The work of one loop that a consumer does, run once; a `LoopWork`, which is made anew to run again.

    Args:
        consumer: not entered yet.
        handler: takes its batches, see `Consumer.run_batches`.
        ready: awaited before the group is joined.
        close: awaited after the last batch, before the group is left; also where the handler failed.
        check: raises why what the handler does gets nowhere, where only that can tell.
    """

    def __init__(
        self,
        consumer: Consumer,
        handler: Callable[[Batch], Awaitable[object]],
        *,
        ready: Callable[[], Awaitable[object]],
        close: Callable[[], Awaitable[object]],
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._consumer, self._handler, self._ready, self._close = consumer, handler, ready, close
        self._check = check
        self._entered = False

    async def run(self) -> None:
        """Wait for `ready`, join the group, and consume until `stop`; raises what the handler raises for good."""
        await self._ready()
        async with self._consumer:
            self._entered = True
            try:
                await self._consumer.run_batches(self._handler)
            finally:
                await self._close()

    def stop(self) -> None:
        """Let `run` return after the batch under way; does not wait."""
        self._consumer.stop()

    async def check(self) -> bool:
        """Whether the consumer was started, and what waits is taken; raises why not, as `Consumer.check`."""
        self._check()
        return self._entered and await self._consumer.check()
