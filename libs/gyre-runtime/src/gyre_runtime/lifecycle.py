"""How a process lives: set up, serve, drain on SIGTERM in order, exit 0; or exit 1 when a background task dies.

The order of a drain: not ready; still taking calls for the drain delay, in which balancers notice; then no new work,
and time for what is under way.
"""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import uvloop
from gyre_core.heartbeat import Heartbeat

from gyre_runtime.errors import Misconfigured
from gyre_runtime.health import Dependency, Health
from gyre_runtime.loop_work import LoopRunner, LoopWork
from gyre_runtime.settings import ServiceSettings
from gyre_runtime.telemetry import setup_telemetry
from gyre_runtime.transport_security import check_security

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

__all__ = ["Dependency", "Health", "Lifespan", "LoopWork", "run", "run_once"]


class Lifespan:
    """What a process has opened and started; closes it in the right order.

    A process listens before what it needs is there: a `set_up` waits for that in the background, and `health` says
    meanwhile what cannot be answered yet. Servers are closed first, so that calls under way find everything they need.

    Attributes:
        health: what the health service answers.
        failed: whether a set-up or background task died, so that the exit code is 1.

    Args:
        drain_s: seconds that background tasks have to return once draining begins.
        service: the process's name, which the health of its loops is reported under.
    """

    def __init__(self, *, drain_s: float = 10.0, service: str = "") -> None:
        self.health = Health(service, accepts_once_ready=True)
        self._drain_s = drain_s
        self._stack, self._servers = AsyncExitStack(), AsyncExitStack()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._set_ups: set[asyncio.Task[Any]] = set()
        self._stops: list[Callable[[], object]] = []
        self._over, self._at_once = asyncio.Event(), asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._may_return: set[asyncio.Task[Any]] = set()
        self._draining = False
        self.failed = False

    async def __aenter__(self) -> Self:
        """Begin; `health.start` says when set-up is over."""
        await self._stack.__aenter__()
        await self._servers.__aenter__()
        self._watch = asyncio.create_task(self.health.watch(), name="health")
        self._watch.add_done_callback(self._ended)
        return self

    async def enter(self, resource: AbstractAsyncContextManager[T]) -> T:
        """Enter a resource and return what it gives; closed at the end, after tasks and servers, in reverse order."""
        return await self._stack.enter_async_context(resource)

    async def serve(self, server: AbstractAsyncContextManager[T]) -> T:
        """Enter a server, which listens from now on; closed before all resources, whenever those were entered.

        Returns once it listens: it does not wait for the end.
        """
        return await self._servers.enter_async_context(server)

    def set_up(self, name: str, work: Coroutine[Any, Any, object], *, required: bool = True) -> None:
        """Go on with the set-up in the background, for what waits until a peer is there; the server listens meanwhile.

        Args:
            name: in logs, and of the `Dependency` that says whether it is done.
            work: the coroutine, which may enter resources and start background tasks. The process ends with exit code 1
                when it raises.
            required: whether the process is NOT_SERVING until it is done.
        """
        task = asyncio.create_task(work, name=name)
        self._set_ups.add(task)
        task.add_done_callback(self._ended)

        async def done() -> bool:
            return task.done() and not task.cancelled() and task.exception() is None

        self.health.add(Dependency(name, done, required=required))
        task.add_done_callback(lambda _: self.health.look())

    def background(
        self,
        name: str,
        work: Coroutine[Any, Any, Any],
        *,
        stop: Callable[[], object] | None = None,
        may_return: bool = False,
    ) -> asyncio.Task[Any]:
        """Start a task that runs for the life of the process, and return it; to await it is not needed.

        When it ends before the process drains, by an error, cancelled, or because it returns, the process ends with
        exit code 1 and the reason in its log.

        Args:
            name: in logs.
            work: the coroutine.
            stop: called when draining begins; the task then has `drain_s` to return. Without it, it is cancelled.
            may_return: the work has an end, so that returning is success.
        """
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        if may_return:
            self._may_return.add(task)
        task.add_done_callback(self._ended)
        self._stops.append(stop or task.cancel)
        return task

    def for_loop(self, loop: str, make: Callable[[], LoopWork], *, required: bool = True) -> None:
        """Start one loop's work in the background, for the life of the process: when it fails, it alone starts again.

        It starts again after 1 s, doubling to 30 s, without end; the process goes on, and the loop's health is down.

        Args:
            loop: its name.
            make: makes the work, each time that it starts.
            required: whether the process serves nobody while no loop's work gets on; the loop's own health says so in
                any case.
        """
        runner = LoopRunner(loop, make)
        self.depends_on(Dependency(f"loop {loop}", runner.check, required=required, loop=loop))
        self.background(f"loop {loop}", runner.run(), stop=runner.stop)

    def depends_on(self, dependency: Dependency) -> None:
        """Let readiness depend on something; it is down until its first check, see `Dependency`."""
        self.health.add(dependency)

    def end(self) -> None:
        """Let the process begin to drain, as SIGTERM does, without waiting; a second call ends the drain delay."""
        if self._over.is_set():
            self._at_once.set()
        self._over.set()

    async def until_over(self) -> None:
        """Wait for `end`, which the signals call, or for a set-up or background task to die; see `failed`."""
        await self._over.wait()

    async def announce_end(self, delay_s: float) -> None:
        """Say NOT_SERVING, and work on as before for `delay_s` where there are callers, who look for another process.

        In the first half callers connect to others, a process that was started a moment ago among them; in the second
        half, those who follow `accepting` leave. A second signal, or a background task that dies, ends the delay.
        """
        await self.health.drain()
        if self.health.has_callers:
            await self._delay(delay_s / 2)
            await self.health.stop_accepting()
            await self._delay(delay_s / 2)

    async def _delay(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._at_once.wait(), seconds)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        reason = "it failed" if error else "it was cancelled" if task.cancelled() else "it returned"
        is_over = self._draining or (task in self._may_return | self._set_ups and reason == "it returned")
        if error is None and is_over:
            return
        self.failed = True
        facts = {"task": task.get_name(), "reason": reason}
        if isinstance(error, Misconfigured):
            _LOG.critical("a background task died", extra=facts | {"problem": error.message})
        else:
            _LOG.critical("a background task died", exc_info=error, extra=facts)
        self._over.set()
        self._at_once.set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drain: not ready, stop consuming, finish what is under way, close in reverse order."""
        await self.health.drain()
        self._draining = True
        for task in self._set_ups:
            task.cancel()
        await asyncio.gather(*self._set_ups, return_exceptions=True)
        for stop in self._stops:
            stop()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._drain_s)
            for task in late:
                _LOG.warning("a background task did not end in time", extra={"task": task.get_name()})
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._servers.aclose()
        await self._stack.aclose()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)


async def serve_forever(
    main: Callable[[Lifespan], Awaitable[None]], settings: ServiceSettings, service: str = ""
) -> int:
    """Set up with `main`, serve until SIGTERM or SIGINT, or until a background task dies; drain.

    Returns:
        The exit code: 0, or 1 where a set-up or background task died. What `main` raises is raised after the drain.
    """
    lifespan = Lifespan(drain_s=settings.drain_s, service=service)
    with _signals(lifespan.end):
        async with lifespan:
            await _live(main, lifespan, settings.drain_delay_s)
    return 1 if lifespan.failed else 0


async def _live(main: Callable[[Lifespan], Awaitable[None]], lifespan: Lifespan, drain_delay_s: float) -> None:
    set_up = asyncio.ensure_future(main(lifespan))
    over = asyncio.ensure_future(lifespan.until_over())
    await asyncio.wait({set_up, over}, return_when=asyncio.FIRST_COMPLETED)
    if not set_up.done():
        set_up.cancel()
        await asyncio.gather(set_up, return_exceptions=True)
    else:
        set_up.result()
        await lifespan.health.start()
        _LOG.info("ready")
        await over
        _LOG.info("draining")
        await lifespan.announce_end(drain_delay_s)
    over.cancel()


@contextmanager
def _signals(end: Callable[[], None]) -> Iterator[None]:
    """Let SIGTERM and SIGINT begin the end while the block runs."""
    loop, signals = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    for each in signals:
        loop.add_signal_handler(each, end)
    try:
        yield
    finally:
        for each in signals:
            loop.remove_signal_handler(each)


def run(main: Callable[[Lifespan], Awaitable[None]], *, settings: ServiceSettings, service: str) -> None:
    """Run a process from start to exit: check its files, start telemetry, serve, drain. Never returns.

    Args:
        main: sets everything up on the lifespan and returns; the process serves from then on.
        settings: of the process.
        service: its name in logs, spans and metrics, such as `features-stream`.

    Raises:
        SystemExit: 0 after a drain, 1 when the set-up or a background task failed, or a message that names the setting
            that cannot be used, or whose file cannot.
    """
    with _says_what_is_misconfigured():
        _run(main, settings=settings, service=service)


def run_once(job: Callable[[], int], *, name: str) -> NoReturn:
    """Do a job that has an end, blocking, and leave the process with the exit code that it returns.

    It sets up neither telemetry nor signals; what the job raises beside Misconfigured is raised. What takes long says
    every ten seconds on stderr that it is under way.

    Args:
        job: what is done.
        name: of the job, for those lines, such as `trainer join`.

    Raises:
        SystemExit: the code, or a message that names the setting that cannot be used, or whose file cannot.
    """
    describe = f"{name}: under way"
    with _says_what_is_misconfigured(), Heartbeat(lambda: [describe], out=sys.stderr, has_bar=False):
        code = job()
    sys.exit(code)


@contextmanager
def _says_what_is_misconfigured() -> Iterator[None]:
    """Leave the process with the message alone, without a traceback, when the settings cannot be used."""
    try:
        yield
    except Misconfigured as error:
        sys.exit(error.message)


def _run(main: Callable[[Lifespan], Awaitable[None]], *, settings: ServiceSettings, service: str) -> NoReturn:
    check_security(settings)
    telemetry = setup_telemetry(service, settings)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(serve_forever(main, settings, service))
    except Misconfigured:
        raise
    except Exception:  # noqa: BLE001 - the outermost boundary: logged, exit code 1
        _LOG.critical("the process cannot go on", exc_info=True)
        code = 1
    finally:
        telemetry.shutdown()
    sys.exit(code)
