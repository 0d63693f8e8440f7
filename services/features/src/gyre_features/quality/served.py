"""The features that an impression says were served."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gyre.events.v1 import behavior_pb2 as behavior


def features_served(message: behavior.Impression, layout: str, width: int) -> npt.NDArray[np.float32] | None:
    """The features of an impression's items, float32 [items, `width`], read-only.

    None where it has none of this layout. Also None where their size does not fit.
    """
    block = message.features
    fits = block.columns == width and len(block.values) == 4 * block.rows * block.columns
    if block.layout != layout or not block.rows or not fits:
        return None
    return np.frombuffer(block.values, dtype="<f4").reshape(block.rows, block.columns)
