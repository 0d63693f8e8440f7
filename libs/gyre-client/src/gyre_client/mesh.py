"""Clients of all services at once, from the settings: for tools that operate a mesh."""

from types import TracebackType
from typing import Self

from gyre.deployer.v1 import deployer_pb2_grpc as deployer_rpc
from gyre.features.v1 import data_quality_pb2_grpc as quality_rpc
from gyre.features.v1 import features_pb2_grpc as features_rpc
from gyre.features.v1 import parity_pb2_grpc as parity_rpc
from gyre.monitor.v1 import monitor_pb2_grpc as monitor_rpc
from gyre.trainer.v1 import trainer_pb2_grpc as trainer_rpc
from gyre_runtime import Channel, channel

from gyre_client.gateway import GyreClient
from gyre_client.settings import ClientSettings


class Mesh:
    """Clients of a mesh's services but inference, which the gateway asks; an async context manager.

    Connections are made with the first call; a service that is not there is an error of its call only.

    The stubs raise the `GyreError` family and want a timeout: use them through `gyre_client.call`.

    Attributes:
        settings: where the services are.
        gateway: a `GyreClient`.
        features: the feature store's stub.
        quality: the stub of the reports on the data.
        parity: the stub of its check.
        trainer: the trainer's stub.
        deployer: the deployer's stub.
        monitor: the monitor's stub.
    """

    def __init__(self, settings: ClientSettings | None = None) -> None:
        self.settings = settings or ClientSettings()
        self._channels: list[Channel] = []
        self.gateway = GyreClient(settings=self.settings)
        features = self._open("features", self.settings.features)
        self.features = features_rpc.FeaturesServiceStub(features)
        self.quality = quality_rpc.DataQualityServiceStub(features)
        self.parity = parity_rpc.ParityServiceStub(self._open("features-check", self.settings.features_check))
        self.trainer = trainer_rpc.TrainerServiceStub(self._open("trainer", self.settings.trainer))
        self.deployer = deployer_rpc.DeployerServiceStub(self._open("deployer", self.settings.deployer))
        self.monitor = monitor_rpc.MonitorServiceStub(self._open("monitor", self.settings.monitor))

    def _open(self, name: str, address: str) -> Channel:
        opened = channel(address, self.settings, name=name, token=self.settings.token)
        self._channels.append(opened)
        return opened

    async def __aenter__(self) -> Self:
        """Use the clients."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self.gateway.__aexit__(kind, error, trace)
        for each in self._channels:
            await each.close()
