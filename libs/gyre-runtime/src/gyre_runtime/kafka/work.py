"""A loop's work that is done by one consumer whose store knows where to begin."""

from collections.abc import Awaitable, Callable

from gyre_runtime.checkpoints import Batch
from gyre_runtime.kafka.consumer import Consumer


class ConsumerWork:
    """Runs a consumer once; a `LoopWork`.

    Args:
        consumer: not entered yet.
        handler: takes its batches, see `Consumer.run_batches`.
        ready: awaited before the group is joined.
        close: awaited after the last batch, before the group is left.
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
        """Consume until `stop`."""
        await self._ready()
        async with self._consumer:
            self._entered = True
            try:
                await self._consumer.run_batches(self._handler)
            finally:
                await self._close()

    def stop(self) -> None:
        """End `run` after the batch under way."""
        self._consumer.stop()

    async def check(self) -> bool:
        """Whether the consumer has joined its group, and what waits is taken; raises why not."""
        self._check()
        return self._entered and await self._consumer.check()
