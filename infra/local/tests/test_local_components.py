"""The real components, started by the recipes that the stack uses, do their job."""

import asyncio
from pathlib import Path

import numpy as np
import onnx
import pytest
import redis.asyncio
import tritonclient.grpc.aio as triton_client
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from gyre_local.testing import TritonServer, eventually
from onnx import TensorProto, helper

pytestmark = pytest.mark.adapter

CONFIG = """
backend: "onnxruntime"
max_batch_size: 64
input [ { name: "features" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "score" data_type: TYPE_FP32 dims: [ 1 ] } ]
dynamic_batching { max_queue_delay_microseconds: 2000 }
response_cache { enable: true }
"""


def write_model(repository: Path, name: str, *, config: str = CONFIG) -> None:
    """Write a model that scores a row of three features with their weighted sum."""
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [3, 1], [1.0, 2.0, 3.0])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "weights"], ["score"])],
        "weighted-sum",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows", 1])],
        [weights],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    directory = repository / name
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text(config)
    onnx.save(model, directory / "1" / "model.onnx")


async def score(client: triton_client.InferenceServerClient, model: str, rows: np.ndarray) -> np.ndarray:
    """Ask Triton for the scores of `rows`, float32 of shape (n, 3)."""
    tensor = triton_client.InferInput("features", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    answer = await client.infer(model, [tensor])
    return answer.as_numpy("score")


async def test_kafka_keeps_a_record(kafka: str, loop_name: str) -> None:
    """A record sent to a created topic is read back with its key and value."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        topic = f"{loop_name}.behavior.interactions"
        await admin.create_topics([NewTopic(topic, num_partitions=3, replication_factor=1)])
    finally:
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=kafka, acks="all", enable_idempotence=True) as producer:
        sent = await producer.send_and_wait(topic, b"liked", key=b"user-1")
    async with AIOKafkaConsumer(topic, bootstrap_servers=kafka, auto_offset_reset="earliest") as consumer:
        record = await asyncio.wait_for(consumer.getone(), timeout=10)
    assert (record.key, record.value, record.offset) == (b"user-1", b"liked", sent.offset)


async def test_redis_answers(redis_url: str, loop_name: str) -> None:
    """A value set in Redis is read back."""
    async with redis.asyncio.from_url(redis_url) as client:
        await client.set(loop_name, b"kept")
        assert await client.get(loop_name) == b"kept"


async def test_triton_loads_serves_and_unloads(triton: TritonServer, loop_name: str) -> None:
    """A model of the repository is served once loaded, also in concurrent batches, and gone once unloaded."""
    model = f"{loop_name}--v1"
    write_model(triton.repository, model)
    async with triton_client.InferenceServerClient(triton.grpc) as client:
        await client.load_model(model)
        rows = np.arange(12, dtype=np.float32).reshape(4, 3)
        batches = [rows + shift for shift in range(20)]
        answers = await asyncio.gather(*(score(client, model, batch) for batch in batches))
        for batch, answer in zip(batches, answers, strict=True):
            np.testing.assert_allclose(answer, batch @ np.array([[1.0], [2.0], [3.0]], dtype=np.float32))
        await client.unload_model(model)

        async def gone() -> bool:
            return not await client.is_model_ready(model)

        await eventually(gone, message="the model is unloaded")


async def test_triton_refuses_a_config_that_the_model_contradicts(triton: TritonServer, loop_name: str) -> None:
    """Loading a model whose configuration states another shape fails and names the input."""
    write_model(triton.repository, loop_name, config=CONFIG.replace("dims: [ 3 ]", "dims: [ 4 ]"))
    async with triton_client.InferenceServerClient(triton.grpc) as client:
        with pytest.raises(Exception, match="input 'features' has the shape"):
            await client.load_model(loop_name)
