"""Lets a loop's router follow its rollout state."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gyre.events.v1 import models_pb2 as models
from gyre_core.topics import topic
from gyre_runtime.events import Event, message_types
from gyre_runtime.kafka import View
from gyre_runtime.series import VersionSeries

from gyre_gateway.domain.routing import RolloutArm, Router, Target, TrafficSplit

_LOG = logging.getLogger(__name__)


def rollout_view(bootstrap: str, router: Router, on_newer: Callable[[], None]) -> View:
    """The view that keeps a router at its loop's newest rollout state, and tells of each new epoch."""
    series = VersionSeries(router.loop)

    def adopt(_key: str, event: Event | None) -> None:
        if event is None:
            return
        try:
            newer = router.adopt(rollout_of(event.message))
        except ValueError as error:
            facts = {"loop": router.loop, "epoch": event.message.epoch, "problem": str(error)}
            _LOG.error("a rollout state is refused: the one before stays", extra=facts)
            return
        if newer:
            series.note_used(router.versions)
            on_newer()

    types = message_types(models.RolloutView)
    return View(bootstrap, topic(router.loop, "models.rollouts"), types, on_change=adopt)


def rollout_of(view: models.RolloutView) -> TrafficSplit:
    """Read a rollout view."""
    layouts = {each.version: each.layout for each in view.models}
    last_good = view.last_good_version
    return TrafficSplit(
        epoch=view.epoch,
        arms=tuple(RolloutArm(arm.name, Target(arm.version, arm.layout), arm.share) for arm in view.arms),
        last_good=Target(last_good, layouts.get(last_good, "")) if last_good else None,
        rollout_id=view.rollout_id,
        traceparent=view.traceparent,
    )
