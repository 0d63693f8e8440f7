"""Settings of the monitor, beyond those that every process has."""

from typing import Annotated

from gyre_runtime import ServiceSettings
from gyre_runtime.settings import Address, KafkaSettings, PrivacySettings, StateSettings, TrainerPeer
from pydantic import AfterValidator, Field

_SQLITE = "sqlite:///"


def _sqlite_file(url: str) -> str:
    """Take only what the monitor is shipped, tested and erased with: other servers have no driver here.

    Raises:
        ValueError: it is the URL of no SQLite file.
    """
    file = url.removeprefix(_SQLITE)
    if url and (file in {url, "", "/"} or ":memory:" in file or "?" in file):
        raise ValueError("must be sqlite:///FILE, a database in a file, or empty")
    return url


class MonitorSettings(ServiceSettings, KafkaSettings, PrivacySettings, StateSettings, TrainerPeer):
    """What the monitor reads from the environment."""

    service = "monitor"

    otlp_listen: Address = "127.0.0.1:17062"
    """host:port where the monitor takes spans (OTLP over gRPC)."""
    monitor_database: Annotated[str, AfterValidator(_sqlite_file)] = ""
    """The monitor's database, `sqlite:///FILE`; empty for the file `monitor.db` in the state folder."""
    monitor_batch_events: int = Field(2000, ge=1, le=50_000)
    """Most events in one transaction."""
    monitor_impressions_kept: int = Field(500_000, ge=1000)
    """How many answers are kept for attribution and lineage."""
    monitor_interactions_kept: int = Field(1_000_000, ge=1000)
    """How many interactions are kept for attribution and lineage."""
    monitor_request_spans_kept: int = Field(200_000, ge=1000)
    """How many spans of requests are kept."""
    monitor_model_spans_kept: int = Field(200_000, ge=1000)
    """How many spans of the flow of models are kept."""
    monitor_alerts_kept: int = Field(10_000, ge=100)
    """How many alerts are kept."""
    monitor_flow_timeout_s: float = Field(3600.0, gt=0)
    """Seconds after which a run or a candidate that nothing more is heard of holds back no trigger."""
    monitor_incident_gap_s: float = Field(300.0, ge=0)
    """Alerts at most so many seconds apart belong to one incident."""

    @property
    def database_url(self) -> str:
        """The URL of the database."""
        return self.monitor_database or f"sqlite:///{(self.state_dir / 'monitor.db').absolute()}"
