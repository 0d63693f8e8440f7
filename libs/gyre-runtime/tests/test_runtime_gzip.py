"""What batches of gzip data are unpacked to."""

import gzip

import gyre_runtime.kafka  # noqa: F401 - which has aiokafka unpack by its own functions
import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record import default_records


def _member(value: bytes) -> bytes:
    """One member of a gzip file."""
    return gzip.compress(value, 1, mtime=0)


@pytest.mark.parametrize(
    ("members", "wanted"), [([b"x"] * 40_000, b"x" * 40_000), ([b"abc"], b"abc"), ([b"a", b"", b"bc"], b"abc")]
)
def test_gzip_of_many_members_and_with_padding_is_unpacked(members: list[bytes], wanted: bytes) -> None:
    """The members of a batch's gzip data are joined, as many as there are, and zeros behind them are none of it."""
    packed = b"".join(map(_member, members))
    for payload in (packed, packed + bytes(512)):
        assert default_records.gzip_decode(memoryview(payload)) == wanted


@pytest.mark.parametrize("cut", [1, 8, 15])
def test_gzip_that_is_cut_short_is_corrupt(cut: int) -> None:
    """A batch that ends within its gzip data stands for a corrupt one."""
    with pytest.raises(CorruptRecordException):
        default_records.gzip_decode(_member(b"abc")[:-cut])
