"""Settings of the features processes, beyond those that every process has."""

from gyre_runtime import ServiceSettings
from gyre_runtime.settings import (
    ArtifactSettings,
    KafkaSettings,
    PrivacySettings,
    RedisSettings,
    StateSettings,
    WarehouseSettings,
)
from pydantic import Field


class FeaturesSettings(
    ServiceSettings,
    KafkaSettings,
    RedisSettings,
    WarehouseSettings,
    ArtifactSettings,
    StateSettings,
    PrivacySettings,
):
    """What the processes of the features service read from the environment."""

    service = "features"

    features_batch_events: int = Field(1000, ge=1, le=10_000)
    """Most events in one batch of the stream: one script in Redis, which answers nobody else meanwhile."""
    features_duplicates_s: int = Field(300, ge=1)
    """How long the identities of applied events are remembered at least, seconds."""
    features_popular_kept: int = Field(2000, ge=10)
    """How many popular items are kept, in all and for each category."""
    features_archive_rows: int = Field(20_000, ge=1)
    """Rows after which the archive commits."""
    features_archive_bytes: int = Field(64 * 1024 * 1024, ge=1024)
    """Bytes of payload after which the archive commits."""
    features_archive_s: float = Field(2.0, gt=0)
    """Seconds after which the archive commits what it has."""
    features_compact_bytes: int = Field(128 * 1024 * 1024, ge=1024)
    """Size that small files of the warehouse are rewritten into, bytes as written; a job takes a few times that."""
    features_compact_files: int = Field(4, ge=2)
    """How many small files a day must have before they are rewritten."""
    features_snapshots_kept_s: float = Field(7 * 86_400.0, ge=3600)
    """Seconds that a table's snapshots are kept; those that an artefact names stay as long as it does."""
    features_snapshots_kept: int = Field(10, ge=1)
    """How many of a table's newest snapshots are kept, whatever their age."""
    features_orphans_kept_s: float = Field(86_400.0, ge=3600)
    """Seconds that files which no snapshot names are left alone: more than any commit takes."""
    features_forget_wait_s: float = Field(10.0, ge=0)
    """Seconds that `DeleteEntity` waits for the archive to rewrite the warehouse before it answers without it."""
    features_backfill_processes: int = Field(2, ge=1, le=64)
    """How many processes of a backfill work side by side, each on topic partitions of its own."""
    features_check_interval_s: float = Field(3600.0, gt=0)
    """Seconds between two parity checks of each loop."""
    features_check_impressions: int = Field(1000, ge=1, le=100_000)
    """Most impressions that a parity check compares, the newest."""
    features_check_period_s: float = Field(86_400.0, gt=0)
    """How far back a parity check looks for impressions, seconds of wall time."""
    features_quality_batch: int = Field(500, ge=1, le=8192)
    """Most records that the quality worker takes at once."""
    features_quality_idle_s: float = Field(10.0, gt=0)
    """Seconds of wall time without a record of a partition, after which its open windows are told as they stand."""
    features_quality_live_s: float = Field(30.0, gt=0)
    """Seconds between two judgements of live features beside the training set of the live model."""
    features_quality_kept: int = Field(1000, ge=1)
    """How many quality windows of each topic `GetReport` can answer from."""
