"""What live quality reads from Kafka and says there: the live model, the sketches, the judgements, the alerts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from google.protobuf.message import Message
from gyre.events.v1 import features_pb2 as pb
from gyre.events.v1 import models_pb2 as models
from gyre_core.spec import CHECKS, LoopSpec
from gyre_core.topics import topic
from gyre_runtime import Unavailable, instrument
from gyre_runtime.checkpoints import Place
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import Producer, View

from gyre_features.quality.findings import LIVE_QUALITY
from gyre_features.quality.judging import JudgedFeatures, follow_up, judge_features, live_quality, worst
from gyre_features.quality.live import LiveReference
from gyre_features.quality.report import QualityWindows
from gyre_features.quality.sketching import IMPRESSIONS
from gyre_features.quality.windowed import judge_windows

SKETCHES = "features.sketches"
_LIVE = "live"
_OF_FEATURES = frozenset(name for name in CHECKS if name.startswith("drift."))
_Seen = tuple[str, dict[int, int]]
_RETRY_S = 1.0
_LOG = logging.getLogger(__name__)


class LiveFlow:
    """Follows live models, sketches and judgements in Kafka, judges, and publishes; an async context manager.

    It reads from the first record on; before it was entered nothing is known.

    Args:
        kafka: host:port list.
        loops: by name.
        artifacts: the artefact folder of all loops.
        producer: for what is published.
        windows: the newest of the raw stream.
    """

    def __init__(
        self,
        kafka: str,
        loops: Mapping[str, LoopSpec],
        artifacts: Path,
        producer: Producer,
        *,
        windows: QualityWindows,
    ) -> None:
        self._loops, self._artifacts, self._producer = dict(loops), artifacts, producer
        self._references: dict[str, LiveReference | None] = {}
        rollouts, sketches, judged = map(message_types, (models.RolloutView, pb.LiveSketch, pb.LiveQuality))
        self._rollouts = {
            name: View(kafka, topic(name, "models.rollouts"), rollouts, on_change=self._follow(name)) for name in loops
        }
        self._sketches = {name: View(kafka, topic(name, SKETCHES), sketches) for name in loops}
        self._judged = {name: View(kafka, topic(name, LIVE_QUALITY), judged) for name in loops}
        self._windows = windows
        self._features: dict[str, tuple[_Seen, JudgedFeatures | None]] = {}
        self._said: dict[str, list[pb.QualityFinding]] = {}
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Begin to follow, and wait, without limit, until what was published before is known."""
        for views in (self._rollouts, self._sketches, self._judged):
            for view in views.values():
                await self._opened.enter_async_context(view)
        for views in (self._rollouts, self._sketches, self._judged):
            for view in views.values():
                await view.ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop following."""
        await self._opened.aclose()

    def _follow(self, loop: str) -> Callable[[str, Event | None], None]:
        def changed(_key: str, event: Event | None) -> None:
            arms = event.message.arms if event is not None else ()
            version = next((arm.version for arm in arms if arm.name == _LIVE and arm.version), "")
            known = self._references.get(loop)
            if known is None or known.version != version:
                self._references[loop] = self._read(loop, version) if version else None

        return changed

    def _read(self, loop: str, version: str) -> LiveReference | None:
        try:
            return LiveReference.read(self._artifacts / loop / version, self._loops[loop])
        except (OSError, ValueError) as error:
            _LOG.warning("a model's reference cannot be read", extra={"version": version, "problem": repr(error)})
            return None

    def reference(self, loop: str) -> LiveReference | None:
        """What the live model of a loop was trained on.

        None where there is no model, or its reference is missing or unreadable.

        The same object until another model is live.
        """
        return self._references.get(loop)

    def stored(self, loop: str, partition: int) -> pb.LiveSketch | None:
        """The sketch that was published last of a loop's partition of impressions, by whomever; None for none."""
        event = self._sketches[loop].get(str(partition))
        return None if event is None else event.message

    async def catch_up(self) -> None:
        """Wait, without limit, until every sketch that was published by now is known."""
        for view in self._sketches.values():
            await view.catch_up()

    async def publish(self, sketches: Sequence[pb.LiveSketch]) -> None:
        """Send sketches, and return once Kafka has all of them, however long it is away."""
        sends = (
            send_until_delivered(self._producer, topic(each.loop, SKETCHES), each, key=str(each.partition))
            for each in sketches
        )
        await asyncio.gather(*sends)

    async def judge(self, owns: Callable[[Place], bool]) -> None:
        """Judge every loop of which this process has the first partition of impressions.

        The others' checks no longer fail here.

        Where the findings differ from the last ones of this process, sends alerts and the judgement, however long Kafka
        is away, and sets the metrics.

        Args:
            owns: whether a partition is this process's now.
        """
        for loop, spec in self._loops.items():
            if not owns((topic(loop, IMPRESSIONS), 0)):
                self._show(loop, self._said.pop(loop, ()), are_ours=False)
                continue
            features, now = await self._judge_features(spec), time.time()
            windows = judge_windows(spec, self._windows, now=now)
            judged = live_quality(spec, features, windows, now=now)
            if judged is None or self._said.get(loop) == list(judged.findings):
                continue
            await self._say(judged, windows.undecided if features is not None else {*windows.undecided, *_OF_FEATURES})
            self._said[loop] = list(judged.findings)

    async def _judge_features(self, spec: LoopSpec) -> JudgedFeatures | None:
        """What the newest sketches say; they are judged again only when one was published."""
        loop, reference = spec.loop, self._references.get(spec.loop)
        if reference is None:
            return None
        published = [event.message for event in self._sketches[loop].events().values()]
        seen = {each.partition: each.end_offset for each in published if each.version == reference.version}
        known = self._features.get(loop)
        if known is None or known[0] != (reference.version, seen):
            judged = await asyncio.to_thread(judge_features, spec, reference, published)
            known = self._features[loop] = (reference.version, seen), judged
        return known[1]

    async def _say(self, judged: pb.LiveQuality, undecided: Collection[str]) -> None:
        """Alerts first, so that a crash says one twice rather than never."""
        loop = judged.loop
        before = self._judged[loop].get(loop)
        failing = before.message.failing if before is not None else {}
        for alert in follow_up(judged, failing, undecided):
            await send_until_delivered(self._producer, topic(loop, "alerts"), alert, key=alert.alert_id)
        await send_until_delivered(self._producer, topic(loop, LIVE_QUALITY), judged, key=loop)
        for name in failing.keys() - judged.failing.keys():
            instrument("gyre_quality_live_failing").set(0.0, loop=loop, check=name)
        self._show(loop, judged.findings)

    @staticmethod
    def _show(loop: str, findings: Iterable[pb.QualityFinding], *, are_ours: bool = True) -> None:
        """Findings as metrics; those of a loop that another worker judges now fail here no more."""
        for name, finding in worst(findings).items():
            instrument("gyre_quality_live_value").set(finding.value, loop=loop, check=name)
            instrument("gyre_quality_live_failing").set(float(are_ours and not finding.passed), loop=loop, check=name)


async def send_until_delivered(producer: Producer, name: str, message: Message, *, key: str) -> None:
    """Send an event to a topic, again and again until Kafka has it; other errors than Unavailable are raised."""
    while True:
        try:
            await producer.send(name, message, key=key)
        except Unavailable:
            await asyncio.sleep(_RETRY_S)
        else:
            return
