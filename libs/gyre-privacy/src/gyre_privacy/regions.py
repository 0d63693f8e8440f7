"""What the telephone formats of a region allow."""

from __future__ import annotations

from collections.abc import Iterable

from phonenumbers import PhoneMetadata


def national_lengths(regions: Iterable[str]) -> frozenset[int]:
    """How many digits national telephone numbers of these regions (ISO 3166-1) may have, by libphonenumber's data.

    Raises:
        ValueError: a region is unknown.
    """
    lengths: set[int] = set()
    for region in regions:
        metadata = PhoneMetadata.metadata_for_region(region)
        if metadata is None or metadata.general_desc is None:
            raise ValueError(f"regions = {region!r}: must be a country code of ISO 3166-1, like DE")
        lengths.update(metadata.general_desc.possible_length)
    return frozenset(lengths)
