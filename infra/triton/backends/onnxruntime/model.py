# ruff: noqa: INP001 - Triton loads this file by its path
"""Triton's `onnxruntime` backend for servers that ship without it, as a Python-based backend.

It serves an ordinary repository entry (`<model>/config.pbtxt` with inputs and outputs, `<model>/<version>/model.onnx`)
on the CPU, so that the same entry serves unchanged on NVIDIA's container, where the native backend takes its place.
The requests that Triton's dynamic batcher hands over together run through the model as one batch.

https://github.com/triton-inference-server/backend/blob/main/docs/python_based_backends.md
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

GRAPH_LEVELS = {
    "-1": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "1": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "2": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


def open_session(model_file, config):
    """An ONNX Runtime session with the native backend's parameters; one thread an instance unless told otherwise."""
    parameters = {name: value.get("string_value", "") for name, value in config.get("parameters", {}).items()}
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count") or 1)
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count") or 1)
    graph = config.get("optimization", {}).get("graph") or {}
    level = str(graph.get("level", ""))
    options.graph_optimization_level = GRAPH_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    return ort.InferenceSession(str(model_file), options, providers=["CPUExecutionProvider"])


def dimensions(tensor):
    """A tensor's shape with -1 for what varies."""
    return [size if isinstance(size, int) and size >= 0 else -1 for size in tensor.shape]


def contradictions(kind, configured, tensors, *, batched):
    """What the configuration says about the model's inputs or outputs and the model denies, as sentences."""
    known = {tensor.name: tensor for tensor in tensors}
    for entry in configured:
        tensor = known.get(entry["name"])
        if tensor is None:
            yield f"{kind} '{entry['name']}' is not in the model, which has {sorted(known)}"
            continue
        if entry["data_type"] != TRITON_TYPES.get(tensor.type):
            yield f"{kind} '{tensor.name}' is {tensor.type} in the model and {entry['data_type']} in the configuration"
        reshaped = (entry.get("reshape") or {}).get("shape")
        told = [-1] * batched + [int(size) for size in (entry["dims"] if reshaped is None else reshaped)]
        real = dimensions(tensor)
        if len(told) != len(real) or any(-1 not in (t, r) and t != r for t, r in zip(told, real, strict=False)):
            yield f"{kind} '{tensor.name}' has the shape {real} in the model and {told} in the configuration"
    missing = set(known) - {entry["name"] for entry in configured}
    if kind == "input" and missing:
        yield f"the configuration lacks the inputs {sorted(missing)}"


def to_onnx(array):
    """Strings reach Triton as bytes and ONNX Runtime as str; everything else as it is."""
    if array.dtype.kind not in "OSU":
        return array
    texts = [value.decode() if isinstance(value, bytes) else value for value in array.ravel()]
    return np.array(texts, dtype=object).reshape(array.shape)


def to_triton(array):
    """The opposite of `to_onnx`."""
    if array.dtype.kind not in "OSU":
        return np.ascontiguousarray(array)
    return np.array([str(value).encode() for value in array.ravel()], dtype=object).reshape(array.shape)


class TritonPythonModel:
    """One instance of one model; Triton makes it, feeds it and drops it."""

    def initialize(self, args):
        """Open the model file and refuse a configuration that it contradicts."""
        config = json.loads(args["model_config"])
        self._batched = config.get("max_batch_size", 0) > 0
        file_name = config.get("default_model_filename") or "model.onnx"
        model_file = Path(args["model_repository"], args["model_version"], file_name)
        self._session = open_session(model_file, config)
        wrong = [
            *contradictions("input", config.get("input", []), self._session.get_inputs(), batched=self._batched),
            *contradictions("output", config.get("output", []), self._session.get_outputs(), batched=self._batched),
        ]
        if wrong:
            raise pb_utils.TritonModelException(f"{args['model_name']}: " + "; ".join(wrong))
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]

    def execute(self, requests):
        """Answer all requests, those of like shape in one run of the model."""
        feeds = [self._feed(request) for request in requests]
        groups = {}
        for index, feed in enumerate(feeds):
            alike = tuple((name, array.shape[1:]) for name, array in feed.items()) if self._batched else index
            groups.setdefault(alike, []).append(index)
        responses = [None] * len(requests)
        for members in groups.values():
            answers = self._run_together([feeds[index] for index in members])
            for index, answer in zip(members, answers, strict=True):
                responses[index] = self._response(requests[index], answer)
        return responses

    def _feed(self, request):
        tensors = ((name, pb_utils.get_input_tensor_by_name(request, name)) for name in self._inputs)
        return {name: to_onnx(tensor.as_numpy()) for name, tensor in tensors if tensor is not None}

    def _run_together(self, feeds):
        """The outputs for each feed as a dict, or the exception that the model raised for all of them."""
        try:
            if len(feeds) == 1:
                return [dict(zip(self._outputs, self._session.run(None, feeds[0]), strict=True))]
            joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
            ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])[:-1]
            parts = [np.split(array, ends) for array in self._session.run(None, joined)]
            return [dict(zip(self._outputs, part, strict=True)) for part in zip(*parts, strict=True)]
        except Exception as error:  # noqa: BLE001 - whatever ONNX Runtime raises becomes the answer to the caller
            return [error] * len(feeds)

    def _response(self, request, answer):
        if isinstance(answer, Exception):
            failure = pb_utils.TritonError(f"onnxruntime: {answer}")
            return pb_utils.InferenceResponse(output_tensors=[], error=failure)
        wanted = request.requested_output_names()
        tensors = [pb_utils.Tensor(name, to_triton(np.asarray(answer[name]))) for name in wanted if name in answer]
        return pb_utils.InferenceResponse(output_tensors=tensors)
