"""The one declaration of Gyre's Kafka topics: created from here at start, documented from here, named nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from gyre_core.spec import LoopSpec

DEAD_LETTER_SUFFIX = ".dlq"
IMPORT_SOURCE = "gyre/import"
"""The CloudEvents source of imported history, which volume triggers do not count."""
BEHAVIOR = ("behavior.interactions", "behavior.impressions")
"""The topics of what users do and were shown, whose partitions have a replay clock."""
CLOCK_MARK = "gyre.events.v1.ClockMark"
"""Full name of the payload that sets the replay clock of a partition of `BEHAVIOR`, beside the topic's own payload."""
_DAY_S = 86_400.0
_DEAD_LETTER_RETENTION_S = 30 * _DAY_S
KAFKA_MAX_BYTES = 1_048_588
"""Kafka's own `max.message.bytes`, and that of every topic that declares no other."""
_IMPRESSION_MAX_BYTES = 2 * 1024 * 1024
_SKETCH_MAX_BYTES = 4 * 1024 * 1024
_LAYOUT_MAX_BYTES = 4 * 1024 * 1024
_SNAPSHOT_MAX_BYTES = 8 * 1024 * 1024
_DEAD_LETTER_EXTRA_BYTES = 64 * 1024
"""By how much a dead letter may exceed its record: room for the headers that say what was wrong."""
MAX_UNPACKED_BYTES = 32 * 1024 * 1024
"""The most bytes of a batch of records that was compressed: a larger one is read by nobody. It is four times what a
record of any topic may have."""
_SEGMENTS_IN_RETENTION, _MIN_SEGMENT_S, _MAX_SEGMENT_S = 10, 60.0, 7 * _DAY_S
_STATUS_SEGMENT_S, _STATUS_SEGMENT_BYTES = 600.0, 16 * 1024 * 1024
"""Of small compacted topics that are written all the time: only closed segments are compacted."""


@dataclass(frozen=True, slots=True)
class TopicDecl:
    """A topic that every loop has.

    `retention_s` None keeps records for ever (or, compacted, the newest of each key); `partitions` is a number, or
    `sharded` for the loop's `shards.kafka_partitions`; `retention_s` of `behavior` topics, and of those that hold the
    flow of models, gives way to the loop's own, and that of `privacy` topics follows from it.
    A compacted topic with `retention_s` also forgets keys that were not written for so long. After `compaction_lag_s`
    at the latest an older record of a key, or a deleted one, may be compacted away, and after as long again the record
    that deleted it; None leaves that to Kafka. No record
    exceeds `max_bytes`, its headers included. `append_time` topics carry the time at which the broker took the record,
    by which lateness is judged, instead of the producer's. `is_status` topics hold few keys that are written all the
    time: small segments keep them small. What is not `served` is declared for clients to come, and no process uses it.
    """

    suffix: str
    key: str
    payload: str
    partitions: int | Literal["sharded"]
    retention_s: float | None
    compacted: bool
    dead_letter: bool
    owner: str
    description: str
    compaction_lag_s: float | None = None
    max_bytes: int = KAFKA_MAX_BYTES
    append_time: bool = False
    is_status: bool = False
    served: bool = True


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of one loop with its numbers resolved; `name` is the full one, the rest as in `TopicDecl`."""

    name: str
    key: str
    payload: str
    partitions: int
    retention_s: float | None
    compacted: bool
    owner: str
    compaction_lag_s: float | None = None
    max_bytes: int = KAFKA_MAX_BYTES
    append_time: bool = False
    is_status: bool = False

    def config(self) -> dict[str, str]:
        """The Kafka topic configuration that this declaration means; each key is set on the topic itself."""
        return {
            **self._cleanup(),
            "max.message.bytes": str(self.max_bytes),
            "message.timestamp.type": "LogAppendTime" if self.append_time else "CreateTime",
        }

    def _cleanup(self) -> dict[str, str]:
        """What Kafka deletes, and when: it does so by whole segments, hence their length."""
        config: dict[str, str] = {"cleanup.policy": "delete"}
        if self.compacted:
            config["cleanup.policy"] = "compact" if self.retention_s is None else "compact,delete"
        if not self.compacted or self.retention_s is not None:
            config["retention.ms"] = str(-1 if self.retention_s is None else round(self.retention_s * 1000))
        if self.is_status:
            config |= {"segment.ms": _ms(_STATUS_SEGMENT_S), "segment.bytes": str(_STATUS_SEGMENT_BYTES)}
        elif self.retention_s is not None:
            config["segment.ms"] = _ms(segment_s(self.retention_s))
        if self.compaction_lag_s is not None:
            config["max.compaction.lag.ms"] = config["delete.retention.ms"] = _ms(self.compaction_lag_s)
        return config


def segment_s(retention_s: float) -> float:
    """How long a segment of a topic is written, seconds, by its retention: records outlive that by no more than this.

    A tenth of the retention, from a minute to 7 days.
    """
    return min(max(retention_s / _SEGMENTS_IN_RETENTION, _MIN_SEGMENT_S), _MAX_SEGMENT_S)


DEAD_LETTERS_KEPT_S = _DEAD_LETTER_RETENTION_S + segment_s(_DEAD_LETTER_RETENTION_S)
"""How long Kafka holds a dead letter at most, seconds."""


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))


def _decl(  # noqa: PLR0913 (one row of the table below, whose columns these are)
    suffix: str,
    payload: str,
    *,
    key: str,
    owner: str,
    description: str,
    partitions: int | Literal["sharded"] = 1,
    retention_s: float | None = 30 * _DAY_S,
    compacted: bool = False,
    dead_letter: bool = True,
    compaction_lag_s: float | None = None,
    max_bytes: int = KAFKA_MAX_BYTES,
    is_status: bool = False,
    served: bool = True,
) -> TopicDecl:
    return TopicDecl(
        suffix=suffix,
        key=key,
        payload=f"gyre.events.v1.{payload}",
        partitions=partitions,
        retention_s=retention_s,
        compacted=compacted,
        dead_letter=dead_letter,
        owner=owner,
        description=description,
        compaction_lag_s=compaction_lag_s,
        max_bytes=max_bytes,
        append_time=suffix.startswith(("behavior.", "catalog.")),
        is_status=is_status,
        served=served,
    )


TOPICS: tuple[TopicDecl, ...] = (
    _decl(
        "behavior.impressions",
        "Impression",
        key="user id",
        owner="gateway",
        partitions="sharded",
        max_bytes=_IMPRESSION_MAX_BYTES,
        description="What was shown: one record a request, with the served features and the propensities.",
    ),
    _decl(
        "behavior.interactions",
        "Interaction",
        key="user id",
        owner="gateway",
        partitions="sharded",
        description="What users did: clicks, ratings and whatever else the loop declares.",
    ),
    _decl(
        "catalog.items",
        "ItemChanged",
        key="item id",
        owner="producers",
        partitions="sharded",
        retention_s=None,
        compacted=True,
        description="The fields of each item; the newest record of an item stands.",
    ),
    _decl(
        "catalog.users",
        "UserChanged",
        key="user id",
        owner="producers",
        partitions="sharded",
        retention_s=None,
        compacted=True,
        compaction_lag_s=_DAY_S,
        description="The fields of each user; the newest record of a user stands. One without a value forgets a user.",
    ),
    _decl(
        "features.applied",
        "BatchApplied",
        key="virtual shard",
        owner="features",
        dead_letter=False,
        description="Which offsets each applied feature batch covered, so that a read can be replayed exactly.",
    ),
    _decl(
        "features.layouts",
        "FeatureLayout",
        key="layout",
        owner="features",
        retention_s=None,
        compacted=True,
        dead_letter=False,
        max_bytes=_LAYOUT_MAX_BYTES,
        is_status=True,
        description="Each feature layout's own definition, and whether it is being filled, served or retired.",
    ),
    _decl(
        "features.quality",
        "QualityWindow",
        key="source topic",
        owner="features",
        dead_letter=False,
        description="Windowed counts and ranges of the raw stream, and how many of its events checks found at fault.",
    ),
    _decl(
        "features.sketches",
        "LiveSketch",
        key="partition",
        owner="features",
        retention_s=None,
        compacted=True,
        dead_letter=False,
        max_bytes=_SKETCH_MAX_BYTES,
        is_status=True,
        description="Mergeable counts and samples of served features, by partition of the impressions.",
    ),
    _decl(
        "features.live-quality",
        "LiveQuality",
        key="loop",
        owner="features",
        retention_s=None,
        compacted=True,
        dead_letter=False,
        is_status=True,
        description="The findings about the live stream and the features that it was served.",
    ),
    _decl(
        "privacy.tombstones",
        "UserForgotten",
        key="user hash",
        owner="features",
        retention_s=_DEAD_LETTER_RETENTION_S + _MAX_SEGMENT_S,
        compacted=True,
        dead_letter=False,
        description="Users to be forgotten: what was sent before counts no more, whoever reads it again.",
    ),
    _decl(
        "privacy.erasures",
        "UserErased",
        key="user hash",
        owner="features",
        retention_s=_DEAD_LETTER_RETENTION_S + _MAX_SEGMENT_S,
        compacted=True,
        dead_letter=False,
        description="What the warehouse has erased of whom, and which snapshots went with it.",
    ),
    _decl(
        "training.triggers",
        "TrainingTrigger",
        key="loop",
        owner="monitor",
        description="Reasons to train: volume, schedule, drift, or a person.",
    ),
    _decl(
        "models.candidates",
        "CandidateRegistered",
        key="loop",
        owner="trainer",
        retention_s=None,
        description="Each trained model that passed its gate; kept for `retention.model_log`.",
    ),
    _decl(
        "models.rollout-events",
        "RolloutEvent",
        key="loop",
        owner="deployer",
        retention_s=None,
        dead_letter=False,
        description="The deployer's log, kept for `retention.model_log`: every change of every rollout.",
    ),
    _decl(
        "models.rollout-snapshots",
        "RolloutSnapshot",
        key="loop",
        owner="deployer",
        retention_s=None,
        compacted=True,
        dead_letter=False,
        max_bytes=_SNAPSHOT_MAX_BYTES,
        is_status=True,
        description="What the deployer has to know of the log so far, so that a start need not read it.",
    ),
    _decl(
        "models.rollouts",
        "RolloutView",
        key="loop",
        owner="deployer",
        retention_s=None,
        compacted=True,
        dead_letter=False,
        is_status=True,
        description="The log's projection: which share of users gets which model version, under which epoch.",
    ),
    _decl(
        "models.gateway-reports",
        "GatewayReport",
        key="instance",
        owner="gateway",
        retention_s=_DAY_S,
        compacted=True,
        dead_letter=False,
        is_status=True,
        description="Each live gateway's newest epoch and what it saw of each version.",
    ),
    _decl(
        "experiments.verdicts",
        "Verdict",
        key="rollout id",
        owner="monitor",
        retention_s=None,
        description="What an experiment showed: better, worse or inconclusive.",
        served=False,
    ),
    _decl("alerts", "Alert", key="alert name", owner="monitor", description="Alerts, firing and resolved."),
    _decl(
        "batch.jobs",
        "BatchJob",
        key="job id",
        owner="gateway",
        partitions="sharded",
        retention_s=7 * _DAY_S,
        description="Parts of batch scoring jobs.",
        served=False,
    ),
    _decl(
        "batch.results",
        "BatchResult",
        key="job id",
        owner="inference",
        partitions="sharded",
        retention_s=7 * _DAY_S,
        description="Scores of batch jobs, part by part.",
        served=False,
    ),
)

_MODEL_LOG = frozenset({"models.candidates", "models.rollout-events", "experiments.verdicts"})
_BY_SUFFIX = {decl.suffix: decl for decl in TOPICS}


def topic(loop: str, suffix: str) -> str:
    """The full name of a loop's topic, `<loop>.<suffix>`; raises KeyError for a suffix that is not declared."""
    return f"{loop}.{_BY_SUFFIX[suffix].suffix}"


def stream_group(loop: str, layout: str) -> str:
    """The consumer group whose committed offsets say how far a loop's topics were applied to a layout, by its hash."""
    return f"features-stream-{loop}-{layout}"


def is_compacted(name: str) -> bool:
    """Whether a topic, by its full name, keeps the newest record of each key, so that one without a value deletes.

    False for one that is not declared, dead-letter topics included.
    """
    decl = _BY_SUFFIX.get(name.partition(".")[2])
    return decl is not None and decl.compacted


def has_single_key(name: str) -> bool:
    """Whether a topic, by its full name, is compacted to one record, its loop's, so that the newest is all it says.

    False for one that is not declared.
    """
    decl = _BY_SUFFIX.get(name.partition(".")[2])
    return decl is not None and decl.compacted and decl.key == "loop"


def max_record_bytes(name: str) -> int:
    """The most bytes that a record of a topic, by its full name, may have with key and headers.

    Dead-letter topics take more than their source; one that is not declared has Kafka's default, `KAFKA_MAX_BYTES`.
    """
    source, is_dead_letter = name.removesuffix(DEAD_LETTER_SUFFIX), name.endswith(DEAD_LETTER_SUFFIX)
    decl = _BY_SUFFIX.get(source.partition(".")[2])
    max_bytes = KAFKA_MAX_BYTES if decl is None else decl.max_bytes
    return max_bytes + _DEAD_LETTER_EXTRA_BYTES if is_dead_letter else max_bytes


@lru_cache(maxsize=4096)
def carries(name: str, payload: str) -> bool:
    """Whether a topic, by its full name, may carry a payload of some full proto name; one not declared carries any."""
    suffix = name.partition(".")[2]
    decl = _BY_SUFFIX.get(suffix)
    return decl is None or decl.payload == payload or (payload == CLOCK_MARK and suffix in BEHAVIOR)


def dead_letter_topic(name: str) -> str:
    """The full name of the topic that takes what could not be processed of topic `name`, declared or not."""
    return f"{name}{DEAD_LETTER_SUFFIX}"


def behavior_kept_s(loop: LoopSpec) -> float:
    """How long Kafka holds a user's event, as behaviour or as a dead letter, by the greater retention, seconds.

    The last segment's length, by which a record may outlive it, is not counted in.
    """
    return max(loop.retention.behavior_s, _DEAD_LETTER_RETENTION_S)


def tombstones_kept_s(loop: LoopSpec) -> float:
    """How long tombstones are retained, seconds: so long that no event that one covers outlives it in Kafka."""
    return behavior_kept_s(loop) + segment_s(behavior_kept_s(loop))


def declared(loop: LoopSpec) -> list[Topic]:
    """Every topic of a loop, dead-letter topics included, with its partitions and retention resolved.

    In the order of `TOPICS`, a dead-letter topic after its source. Nothing is created here.
    """
    topics: list[Topic] = []
    for decl in TOPICS:
        resolved = _resolve(loop, decl)
        topics.append(resolved)
        if decl.dead_letter:
            topics.append(_dead_letter(resolved))
    return topics


def _retention_s(loop: LoopSpec, decl: TopicDecl) -> float | None:
    if decl.suffix.startswith("behavior."):
        return loop.retention.behavior_s
    if decl.suffix.startswith("privacy."):
        return tombstones_kept_s(loop)
    return loop.retention.model_log_s if decl.suffix in _MODEL_LOG else decl.retention_s


def _resolve(loop: LoopSpec, decl: TopicDecl) -> Topic:
    return Topic(
        name=topic(loop.loop, decl.suffix),
        key=decl.key,
        payload=decl.payload,
        partitions=loop.shards.kafka_partitions if decl.partitions == "sharded" else decl.partitions,
        retention_s=_retention_s(loop, decl),
        compacted=decl.compacted,
        owner=decl.owner,
        compaction_lag_s=decl.compaction_lag_s,
        max_bytes=decl.max_bytes,
        append_time=decl.append_time,
        is_status=decl.is_status,
    )


def _dead_letter(source: Topic) -> Topic:
    return Topic(
        name=dead_letter_topic(source.name),
        key=source.key,
        payload=source.payload,
        partitions=1,
        retention_s=_DEAD_LETTER_RETENTION_S,
        compacted=False,
        owner=source.owner,
        max_bytes=max_record_bytes(dead_letter_topic(source.name)),
    )
