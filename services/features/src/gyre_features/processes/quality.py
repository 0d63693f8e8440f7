"""`quality`: the faust worker that watches the raw stream. It serves no gRPC: faust wants a process to itself."""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self

import faust
from faust.types import TP
from gyre.events.v1 import features_pb2 as pb
from gyre_core.spec import LoopSpec
from gyre_core.topics import topic
from gyre_privacy.masking import Privacy, open_privacy
from gyre_privacy.redaction import redactor
from gyre_runtime import Dependency, Lifespan, load_loops
from gyre_runtime.checkpoints import Checkpoint, Place
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Producer, View, ensure_topics

from gyre_features.processes.stream import TOPICS, TYPES
from gyre_features.quality.faust_consumer import ReceivedFromFaust, watch_logs
from gyre_features.quality.flow import LiveFlow, send_until_delivered
from gyre_features.quality.logs import LogChanged, QualityLogs
from gyre_features.quality.report import QualityWindows
from gyre_features.quality.sketching import LiveSketches
from gyre_features.quality.watch import QualityWatch
from gyre_features.quality.windowed import windows_needed
from gyre_features.settings import QualitySettings

GROUP = "features-quality"
_TICK_S = 0.5
_STOP_S = 5.0
_METADATA_MAX_AGE_MS = 5000
"""How soon partitions and topics that come are read."""
_LOG = logging.getLogger(__name__)


async def quality(lifespan: Lifespan, settings: QualitySettings) -> None:
    """Wire the process and return; what waits for Kafka does so in the background, and the metrics page answers."""
    loops = load_loops(settings)
    privacy = open_privacy(settings, loops, redactor)
    stopping = asyncio.Event()
    logs = QualityLogs(settings.kafka, GROUP)
    for name in loops:
        lifespan.depends_on(Dependency(f"loop {name}", partial(logs.check, name), loop=name))
    work = _work(lifespan, settings, loops, privacy, logs)
    lifespan.background("quality", _until_stopped(work, stopping), stop=stopping.set)


async def _until_stopped(coroutine: Coroutine[Any, Any, None], stopping: asyncio.Event) -> None:
    work = asyncio.create_task(coroutine, name="quality stream")
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
        if not work.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
    if not work.cancelled():
        work.result()


async def _work(
    lifespan: Lifespan, settings: QualitySettings, loops: Mapping[str, LoopSpec], privacy: Privacy, logs: QualityLogs
) -> None:
    """Count until cancelled, again from where the group stands when a log is another one by now."""
    await ensure_topics(settings, loops.values())
    async with (
        Producer(settings.kafka, source="gyre/features-quality") as producer,
        PublishedWindows(settings, loops) as published,
        LiveFlow(settings.kafka, loops, settings.artifacts.absolute(), producer, windows=published.windows) as flow,
    ):
        lifespan.depends_on(Dependency("kafka", producer.ping))
        logs.stored = published.checkpoints

        async def closed_until(places: Collection[Place]) -> Mapping[Place, float]:
            await flow.catch_up()
            return await published.closed_until(places)

        while True:
            app = make_app(settings, logs)
            watch = QualityWatch(
                loops,
                TYPES,
                closed_until=closed_until,
                publish=lambda windows: _publish(producer, windows, logs),
                commit=lambda resume, app=app: _commit(app, logs.kafka_offsets(resume)),  # type: ignore[misc]
                clock_at=logs.clock,
                idle_s=settings.features_quality_idle_s,
                mask=privacy.mask,
                live=LiveSketches(
                    loops,
                    reference=flow.reference,
                    stored=flow.stored,
                    publish=flow.publish,
                    every_s=settings.features_quality_live_s,
                ),
            )
            try:
                await _count(app, watch, flow, logs, loops, settings)
            except* LogChanged as changed:
                _LOG.error("counting again", extra={"problem": str(changed.exceptions[0])})


async def _count(
    app: faust.App,
    watch: QualityWatch,
    flow: LiveFlow,
    logs: QualityLogs,
    loops: Iterable[str],
    settings: QualitySettings,
) -> None:
    """Run the app until something fails, or a log is another one (`LogChanged`)."""
    failed = _observe(app, watch, logs, loops, settings)
    async with _running(app), asyncio.TaskGroup() as tasks:
        tasks.create_task(_ticks(watch), name="windows in time")
        tasks.create_task(_judging(flow, app, settings.features_quality_live_s), name="live quality")
        tasks.create_task(logs.run(), name="logs")
        tasks.create_task(_until(app, failed), name="faust")


def make_app(settings: QualitySettings, logs: QualityLogs) -> faust.App:
    """A new faust app without tables, web server and topics of its own, not started; it has no agents yet.

    Also sets the level of the logger `faust` to WARNING, for the whole process. That faust commits no offset of its own
    follows from the agent, which must not acknowledge records (`acks=False`, `noack_take`); the app would.

    Args:
        settings: of the process.
        logs: says where the app's consumer begins, and what is committed with offsets.
    """
    logging.getLogger("faust").setLevel(logging.WARNING)
    app = faust.App(
        GROUP,
        broker=[f"kafka://{address}" for address in settings.kafka.split(",")],
        autodiscover=False,
        datadir=str(settings.state_dir),
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        consumer_metadata_max_age_ms=_METADATA_MAX_AGE_MS,
        stream_wait_empty=False,
        broker_session_timeout=10.0,
        broker_heartbeat_interval=1.0,
        stream_buffer_maxsize=8192,
    )
    watch_logs(app, logs)
    return app


@asynccontextmanager
async def _running(app: faust.App) -> AsyncIterator[None]:
    """Run the app for the block.

    In the middle of a rebalance faust's stop waits, in a blocking call, for a thread that waits for the stopped app.
    The process then leaves by itself after a while: what it counted and did not publish is read again by its successor.
    """
    code = 1
    try:
        app.finalize()
        await app.start()
        yield
    except asyncio.CancelledError:
        code = 0
        raise
    finally:
        last_resort = threading.Timer(_STOP_S, _leave, [code])
        last_resort.daemon = True
        last_resort.start()
        await app.stop()
        last_resort.cancel()


def _leave(code: int) -> None:
    _LOG.warning("faust does not end: leaving without it")
    os._exit(code)


def _observe(
    app: faust.App, watch: QualityWatch, logs: QualityLogs, loops: Iterable[str], settings: QualitySettings
) -> "asyncio.Future[None]":
    """Let the app hand over raw records; answer what fails when the watch does, which faust would only log."""
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    topics = [topic(name, suffix) for name in loops for suffix in TOPICS]

    async def observe(stream: Any) -> None:
        try:
            async for events in stream.noack_take(settings.features_quality_batch, within=0.05):
                await watch.observe(logs.admit(ReceivedFromFaust.of(event.message) for event in events))
        except Exception as error:
            failed.set_exception(error)
            raise

    async def revoked(_app: object, /, *given: Any, **_: Any) -> None:
        await watch.forget([(each.topic, each.partition) for each in given[0]])

    app.agent(app.topic(*topics, key_serializer="raw", value_serializer="raw", acks=False))(observe)
    app.on_partitions_revoked.connect(revoked, weak=False)
    return failed


async def _ticks(watch: QualityWatch) -> None:
    while True:
        await asyncio.sleep(_TICK_S)
        await watch.tick()


async def _judging(flow: LiveFlow, app: faust.App, every_s: float) -> None:
    def owns(place: Place) -> bool:
        return TP(*place) in app.consumer.assignment()

    while True:
        await asyncio.sleep(every_s)
        await flow.judge(owns)


async def _until(app: faust.App, failed: "asyncio.Future[None]") -> None:
    """End with the app or the watch: the process then begins anew from the committed offsets."""
    ended = asyncio.ensure_future(app.wait_until_stopped())
    try:
        await asyncio.wait({ended, failed}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
    if failed.done():
        failed.result()
    raise RuntimeError("faust's app ended")


async def _publish(producer: Producer, windows: Sequence[pb.QualityWindow], logs: QualityLogs) -> None:
    """Send windows with their partitions' checkpoints, each partition's in order, however long Kafka is away."""
    for window in windows:
        window.checkpoint = logs.checkpoint((window.topic, window.partition)).encoded()
    name_of = {window.loop: topic(window.loop, "features.quality") for window in windows}
    sends = (send_until_delivered(producer, name_of[each.loop], each, key=each.topic) for each in windows)
    await asyncio.gather(*sends)


async def _commit(app: faust.App, offsets: Mapping[Place, int]) -> None:
    # faust commits what was acknowledged without a gap; windows close in another order than records come.
    consumer: Any = app.consumer
    await consumer._commit_offsets({TP(*place): offset for place, offset in offsets.items()})  # noqa: SLF001


class PublishedWindows:
    """What any process published of windows, read back from `features.quality` and followed; an async context manager.

    Attributes:
        windows: the newest of each topic.
    """

    def __init__(self, settings: QualitySettings, loops: Mapping[str, LoopSpec]) -> None:
        types = message_types(pb.QualityWindow)
        self._views = [
            View(settings.kafka, topic(name, "features.quality"), types, on_change=self._note) for name in loops
        ]
        self._closed_until: dict[Place, float] = {}
        self._checkpoints: dict[Place, Checkpoint] = {}
        self.windows = QualityWindows(kept=max(map(windows_needed, loops.values())))

    async def __aenter__(self) -> Self:
        """Begin to read from the first record on; `closed_until` and `checkpoints` wait for what is there."""
        for view in self._views:
            await view.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop reading."""
        for view in self._views:
            await view.__aexit__(None, None, None)

    def _note(self, _key: str, event: Event | None) -> None:
        if event is None:
            return
        window: pb.QualityWindow = event.message
        self.windows.note(window)
        place = window.topic, window.partition
        if window.checkpoint:
            self._checkpoints[place] = Checkpoint.decoded(window.checkpoint)
        if window.final:
            end = window.window_end_time.ToNanoseconds() / 1e9
            self._closed_until[place] = max(self._closed_until.get(place, 0.0), end)

    async def closed_until(self, _places: Collection[Place]) -> Mapping[Place, float]:
        """The end of the last final window of each partition that has one, unix seconds, as of now.

        `_places` does not count.

        Waits, without limit, until all that was published by now is read.
        """
        for view in self._views:
            await view.catch_up()
        return self._closed_until

    async def checkpoints(self, places: Collection[Place]) -> Mapping[Place, Checkpoint]:
        """The checkpoints in the windows published last, at which a successor begins.

        Partitions without one are missing. Waits, without limit, until all that was published by now is read.
        """
        for view in self._views:
            await view.catch_up()
        return {place: self._checkpoints[place] for place in places if place in self._checkpoints}
