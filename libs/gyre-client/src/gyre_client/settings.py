"""Where the mesh is and how to speak to it: the environment that the services read, plus the caller's token."""

from gyre_runtime.settings import (
    ChannelSettings,
    DeployerPeer,
    FeaturesCheckPeer,
    FeaturesPeer,
    GatewayPeer,
    InferencePeer,
    KafkaSettings,
    LoopSettings,
    MonitorPeer,
    PrometheusSettings,
    TrainerPeer,
    WarehouseSettings,
)
from pydantic import Field


class PeerSettings(GatewayPeer, FeaturesPeer, FeaturesCheckPeer, InferencePeer, TrainerPeer, DeployerPeer, MonitorPeer):
    """The gRPC addresses of every service of the mesh; the local stack's by default."""


class ClientSettings(ChannelSettings, PeerSettings, LoopSettings, KafkaSettings, PrometheusSettings, WarehouseSettings):
    """The settings of a client; addresses, TLS and Kafka are those of every process."""

    token: str | None = None
    """The bearer token; that of `token_file` without it."""
    source: str = Field("", pattern=r"([A-Za-z0-9][A-Za-z0-9_.-]{0,63})?")
    """The calling application, within which the ids of the events that it tracks are unique. Applications that give ids
    of their own (`1`, `2`) need one each; without it all share one."""
