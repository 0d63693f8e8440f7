"""How a model version is called, on Triton and in the artefact folder, and what its Triton configuration says.

Each version is a Triton model of its own, because explicit mode loads and unloads whole models: `<loop>--<version>`.
A loop's name has no double hyphen, so the name can be split again.

An artefact folder `<artifacts>/<loop>/<version>/` holds `MODEL_FILE` (ONNX, one input `features` float32
[rows, columns of the layout], one output `scores` float32 [rows, 1]), `GOLDEN_FILE` (numpy: `features` float32
[n, columns] and the `scores` float32 [n] that the model gave for them when it was exported), `MANIFEST_FILE`, and
what the data was found to be: `QUALITY_FILE` with its `QUALITY_PAGE` for a person, the ids that were set aside in
`QUARANTINE_FILE`, and `REFERENCE_FILE` and `CLASSIFIER_FILE`, which later data is compared with. A refused run leaves a
folder without a model.
"""

from __future__ import annotations

SEPARATOR = "--"
INPUT = "features"
OUTPUT = "scores"
LAYOUT_PARAMETER = "gyre_layout"
"""The parameter of the Triton configuration that holds the hash of the feature layout that the model reads."""

MODEL_FILE = "model.onnx"
GOLDEN_FILE = "golden.npz"
PINS_FOLDER = ".pins"
"""Folder beside a loop's artefacts that holds, for each run under way, a manifest of the snapshots that it reads."""
MANIFEST_FILE = "model.json"
QUALITY_FILE = "quality.json"
QUALITY_PAGE = "quality.html"
QUARANTINE_FILE = "quarantine.jsonl"
REFERENCE_FILE = "reference.bin"
CLASSIFIER_FILE = "classifier.bin"


def triton_model(loop: str, version: str) -> str:
    """The name of a version on Triton, `<loop>--<version>`; neither part is checked."""
    return f"{loop}{SEPARATOR}{version}"


def split_model(name: str) -> tuple[str, str] | None:
    """The loop and the version that a Triton model's name holds; None where it does not read `<loop>--<version>`."""
    loop, separator, version = name.partition(SEPARATOR)
    return (loop, version) if loop and separator and version else None
