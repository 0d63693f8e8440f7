"""Settings of the gateway."""

from gyre_runtime import ServiceSettings
from gyre_runtime.settings import FeaturesPeer, InferencePeer, KafkaSettings, PrivacySettings
from pydantic import Field


class GatewaySettings(ServiceSettings, KafkaSettings, PrivacySettings, FeaturesPeer, InferencePeer):
    """What the gateway reads from the environment."""

    service = "gateway"

    gateway_instance: str = Field("", max_length=128)
    """Name of this process in reports; host and process id by default."""
    gateway_report_s: float = Field(1.0, gt=0, le=60)
    """Seconds between reports; a gateway whose reports stop for five of them counts as gone."""
    gateway_rollouts_wait_s: float = Field(10.0, ge=0, le=600)
    """Seconds that a start waits for the rollout states; without them requests are ranked without a model."""
    gateway_queue_records: int = Field(20_000, ge=1)
    """Most impressions that wait for Kafka: what a crash can lose."""
    gateway_queue_bytes: int = Field(64 * 1024 * 1024, ge=1024)
    """Most bytes of them."""
    gateway_gather_s: float = Field(0.02, ge=0, le=1)
    """Seconds that an impression waits for others, so that Kafka and its readers get few and large batches."""
