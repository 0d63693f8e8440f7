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


class PeerSettings(GatewayPeer, FeaturesPeer, FeaturesCheckPeer, InferencePeer, TrainerPeer, DeployerPeer, MonitorPeer):
    """Where every service of the mesh is."""


class ClientSettings(ChannelSettings, PeerSettings, LoopSettings, KafkaSettings, PrometheusSettings, WarehouseSettings):
    """The settings of a client; addresses, TLS and Kafka are those of every process."""

    token: str | None = None
    """The bearer token; that of `token_file` without it."""
