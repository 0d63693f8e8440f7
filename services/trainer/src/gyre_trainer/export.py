"""A trained ranker as the files that inference serves: the ONNX graph and golden requests with their answers."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from gyre_core.models import GOLDEN_FILE, INPUT, MODEL_FILE, OUTPUT

from gyre_trainer.ranker import Ranker
from gyre_trainer.training_set import F32

OPSET = 17
"""Gives IR version 8; NVIDIA's 24.10 container carries ONNX Runtime 1.19, which reads IR 10 at most."""

_GOLDEN_ROWS = 64
_TOLERANCE = 1e-4


def export(model: Ranker, golden: F32, folder: Path) -> str:
    """Write the graph and its golden requests; answer the SHA-256 of the graph, hexadecimal.

    Args:
        model: trained.
        golden: rows to take golden requests from, float32 of shape [n, columns of the layout], n at least 1.
        folder: where to write.

    Raises:
        ValueError: the exported graph scores other than the model.
    """
    path = folder / MODEL_FILE
    with warnings.catch_warnings():
        # The tracing exporter is deprecated in favour of one that needs ten times as long for this graph.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(2, golden.shape[1]),),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "rows"}, OUTPUT: {0: "rows"}},
            opset_version=OPSET,
            dynamo=False,
        )
    spread = np.linspace(0, len(golden) - 1, min(_GOLDEN_ROWS, len(golden))).round().astype(np.int64)
    rows = np.ascontiguousarray(golden[spread])
    with torch.no_grad():
        expected = model(torch.from_numpy(rows)).numpy()[:, 0]
    scores = score_with(path, rows)
    if not np.allclose(scores, expected, atol=_TOLERANCE, rtol=_TOLERANCE):
        raise ValueError(f"the exported graph differs from the model by {np.abs(scores - expected).max()}")
    np.savez(folder / GOLDEN_FILE, features=rows, scores=scores)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def score_with(path: Path, rows: F32) -> F32:
    """Score rows [n, columns] with an exported graph: [n]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    scores: F32 = session.run([OUTPUT], {INPUT: rows})[0]
    return scores[:, 0]
