"""Triton through its gRPC client; the client's exceptions become ours here."""

import asyncio
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from gyre_runtime import DeadlineExceeded, GyreError, Precondition, Unavailable
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException

INPUT, OUTPUT = "features", "scores"
_NOT_SERVED = ("unknown model", "is not ready", "not found", "no version")


def model_name(loop: str, version: str) -> str:
    """Triton's name of a version: each version is a model of its own."""
    return f"{loop}--{version}"


def translate(error: InferenceServerException) -> GyreError:
    """Our error for one of Triton's."""
    status, message = str(error.status() or ""), str(error.message() or "")
    if "DEADLINE_EXCEEDED" in status:
        return DeadlineExceeded("DEADLINE_EXCEEDED", "Triton did not score in time")
    if any(words in message.lower() for words in _NOT_SERVED):
        return Precondition("VERSION_NOT_SERVED", "Triton does not serve this version")
    return Unavailable("TRITON_UNAVAILABLE", f"Triton does not score: {status or 'no status'}")


class Triton:
    """Scores on one Triton address; an async context manager."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._client: Any = None

    async def __aenter__(self) -> Self:
        """Open the channel; it connects by itself."""
        self._client = triton.InferenceServerClient(self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the channel."""
        await self._client.close()

    async def live(self) -> bool:
        """Say whether Triton answers; for a `Dependency`."""
        try:
            return bool(await self._client.is_server_live(client_timeout=1.0))
        except InferenceServerException:
            return False

    async def loaded(self) -> dict[str, bool]:
        """The names of the models in the repository, and whether each is ready."""
        try:
            index = await self._client.get_model_repository_index(client_timeout=2.0)
        except InferenceServerException as error:
            raise translate(error) from error
        return {model.name: model.state == "READY" for model in index.models}

    async def columns(self, name: str) -> int:
        """How many columns a model reads.

        Raises:
            Precondition: it is not served.
            Unavailable: Triton does not answer.
        """
        try:
            metadata = await self._client.get_model_metadata(name, client_timeout=2.0)
        except InferenceServerException as error:
            raise translate(error) from error
        return int(metadata.inputs[0].shape[-1])

    async def score(self, name: str, matrix: npt.NDArray[np.float32], *, timeout_s: float) -> bytes:
        """Score the rows of a float32 matrix; answer one little-endian float32 a row.

        Raises:
            Precondition: the model is not served.
            DeadlineExceeded: it took too long.
            Unavailable: Triton does not answer.
        """
        given = triton.InferInput(INPUT, matrix.shape, "FP32")
        given.set_data_from_numpy(matrix)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._client.infer(
                    name, [given], outputs=[triton.InferRequestedOutput(OUTPUT)], client_timeout=timeout_s
                )
        except InferenceServerException as error:
            raise translate(error) from error
        except TimeoutError as error:
            raise DeadlineExceeded("DEADLINE_EXCEEDED", "Triton did not score in time") from error
        scores = answer.as_numpy(OUTPUT)
        return bytes(np.ascontiguousarray(scores, dtype="<f4").tobytes())
