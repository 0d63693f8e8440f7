"""What a request must be, and what the service remembers of the models."""

import pytest
from gyre_inference.domain import Catalogue, FeatureBlock, ServedModel, malformed, mismatch

MODEL = ServedModel("shop--v1", layout="abc", columns=3, max_rows=64)


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        (FeatureBlock("abc", 0, 3, b""), "at least one row"),
        (FeatureBlock("abc", 2, 3, bytes(23)), "24 bytes, not 23"),
        (FeatureBlock("abc", 2, 3, bytes(25)), "24 bytes, not 25"),
    ],
)
def test_a_block_of_another_size_is_malformed(block: FeatureBlock, problem: str) -> None:
    """The values must be exactly rows × columns float32."""
    assert problem in str(malformed(block))


def test_a_whole_block_is_well_formed() -> None:
    """A block with as many bytes as its shape says is accepted."""
    assert malformed(FeatureBlock("abc", 2, 3, bytes(24))) is None


def test_another_layout_or_width_does_not_fit() -> None:
    """A block of another layout, or with another count of columns, is not what the model reads."""
    assert "layout abc" in str(mismatch(MODEL, FeatureBlock("xyz", 1, 3, bytes(12))))
    assert "3 columns" in str(mismatch(MODEL, FeatureBlock("abc", 1, 4, bytes(16))))
    assert mismatch(MODEL, FeatureBlock("abc", 1, 3, bytes(12))) is None


def test_a_new_rollout_state_forgets_versions_that_are_gone() -> None:
    """What Triton told about a version is kept only while the rollout state says that it is loaded."""
    catalogue = Catalogue(["shop", "news"])
    for loop, version in (("shop", "v1"), ("shop", "v2"), ("news", "v1")):
        catalogue.remember(loop, version, MODEL)
    catalogue.adopt("shop", ["v2"])
    assert catalogue.loaded("shop") == ("v2",)
    assert catalogue.model("shop", "v1") is None
    assert catalogue.model("shop", "v2") is MODEL
    assert catalogue.model("news", "v1") is MODEL
