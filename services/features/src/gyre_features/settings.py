"""Settings of the features processes: each holds what it uses, and has the defaults that run the local stack."""

from collections.abc import Mapping

from gyre_core.append_windows import DUPLICATES_S
from gyre_runtime import ServiceSettings
from gyre_runtime.settings import (
    ArtifactSettings,
    KafkaSettings,
    LoopSettings,
    PrivacySettings,
    RedisSettings,
    Settings,
    StateSettings,
    WarehouseSettings,
)
from pydantic import Field


class FeaturesPart(Settings):
    """The base of settings that are the service's own: their variables begin with `GYRE_FEATURES_`."""

    service = "features"


class DuplicateSettings(FeaturesPart):
    """How long a producer's repeats are recognized; stream and replay must agree."""

    features_duplicates_s: int = Field(DUPLICATES_S, ge=1)
    """How long applied events' identities are remembered at least, seconds; replays in training take the default."""


class OnlineStoreSettings(RedisSettings, DuplicateSettings):
    """What writes and reads the online store."""

    features_batch_events: int = Field(1000, ge=1, le=10_000)
    """Most events in one batch of the stream: one script in Redis, which answers nobody else meanwhile."""
    features_max_popular: int = Field(2000, ge=10)
    """How many popular items are kept, in all and for each category."""


class ServeSettings(ServiceSettings, KafkaSettings, ArtifactSettings, PrivacySettings, OnlineStoreSettings):
    """What `features-serve` reads from the environment."""

    features_forget_wait_s: float = Field(10.0, ge=0)
    """Seconds that `DeleteEntity` waits for the archive to rewrite the warehouse before it answers without it."""
    features_layouts_wait_s: float = Field(10.0, ge=0, le=600)
    """Seconds that a start waits at most for the feature layouts, which Kafka holds, before it is ready without."""
    features_max_quality_windows: int = Field(1000, ge=1)
    """How many quality windows of each topic `GetReport` can answer from."""


class StreamSettings(ServiceSettings, KafkaSettings, WarehouseSettings, PrivacySettings, OnlineStoreSettings):
    """What `features-stream` reads from the environment."""

    features_fill_batch_events: int = Field(100, ge=1, le=10_000)
    """Most events in one batch of a layout that is being filled beside others, so that Redis answers in between."""
    features_fill_share: float = Field(0.5, gt=0, le=1)
    """Share of the time that filling a layout may take; the rest is left to the layouts that are read."""
    features_layout_grace_s: float = Field(600.0, ge=0)
    """Seconds that a layout is maintained after nothing names it any more, neither gyre.yaml nor a model."""


class ArchiveSettings(ServiceSettings, KafkaSettings, WarehouseSettings, PrivacySettings, FeaturesPart):
    """What `features-archive` reads from the environment."""

    features_archive_rows: int = Field(20_000, ge=1)
    """Rows after which the archive commits."""
    features_archive_bytes: int = Field(64 * 1024 * 1024, ge=1024)
    """Bytes of payload after which the archive commits."""
    features_archive_s: float = Field(2.0, gt=0)
    """Seconds after which the archive commits what it has."""
    features_users_compaction_s: float = Field(21_600.0, gt=0)
    """Seconds between two records that let Kafka compact forgotten users out of `catalog.users`."""


class QualitySettings(ServiceSettings, KafkaSettings, ArtifactSettings, StateSettings, PrivacySettings, FeaturesPart):
    """What `features-quality` reads from the environment."""

    features_quality_batch: int = Field(500, ge=1, le=8192)
    """Most records that the quality worker takes at once."""
    features_quality_idle_s: float = Field(10.0, gt=0)
    """Seconds of wall time without a record of a partition, after which its open windows are published."""
    features_quality_live_s: float = Field(30.0, gt=0)
    """Seconds between two judgements of live features beside the training set of the live model."""


class CheckSettings(ServiceSettings, KafkaSettings, WarehouseSettings, DuplicateSettings):
    """What `features-check` and the job `check-once` read from the environment."""

    features_check_interval_s: float = Field(3600.0, gt=0)
    """Seconds between two parity checks of each loop."""
    features_check_impressions: int = Field(1000, ge=1, le=100_000)
    """Most impressions of each layout that a parity check compares, the newest."""
    features_check_period_s: float = Field(86_400.0, gt=0)
    """How far back a parity check looks for impressions, seconds of wall time."""


class MaintenanceSettings(LoopSettings, WarehouseSettings, ArtifactSettings, FeaturesPart):
    """What the jobs `compact`, `expire` and `maintain` read from the environment."""

    features_compact_bytes: int = Field(128 * 1024 * 1024, ge=1024)
    """Size that small files of the warehouse are rewritten into, bytes as written; a job takes a few times that."""
    features_compact_files: int = Field(4, ge=2)
    """How many small files a day must have before they are rewritten."""
    features_snapshot_retention_s: float = Field(7 * 86_400.0, ge=3600)
    """Seconds that a table's snapshots are kept; those that an artefact names stay as long as it does."""
    features_min_snapshots: int = Field(10, ge=1)
    """How many of a table's newest snapshots are kept, whatever their age."""
    features_orphan_retention_s: float = Field(86_400.0, ge=3600)
    """Seconds that files which no snapshot names are left alone: more than any commit takes."""


class BackfillSettings(LoopSettings, KafkaSettings, WarehouseSettings, PrivacySettings, OnlineStoreSettings):
    """What the job `backfill` reads from the environment."""

    features_backfill_processes: int = Field(2, ge=1, le=64)
    """How many processes of a backfill work side by side, each on topic partitions of its own."""


class FeaturesSettings(
    ServeSettings,
    StreamSettings,
    ArchiveSettings,
    QualitySettings,
    CheckSettings,
    MaintenanceSettings,
    BackfillSettings,
):
    """All of them at once, for a program that runs several of the processes in its own."""


SETTINGS_OF: Mapping[str, type[Settings]] = {
    "serve": ServeSettings,
    "stream": StreamSettings,
    "archive": ArchiveSettings,
    "quality": QualitySettings,
    "check": CheckSettings,
    "check-once": CheckSettings,
    "backfill": BackfillSettings,
    "compact": MaintenanceSettings,
    "expire": MaintenanceSettings,
    "maintain": MaintenanceSettings,
}
"""What each process and each job reads."""
