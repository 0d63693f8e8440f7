"""Finds and reads MovieTweetings 100K: ratings of films on a scale of 0 to 10, and the films' years and genres.

Simon Dooms, Toon De Pessemier, Luc Martens, MovieTweetings: a Movie Rating Dataset Collected From Twitter (CrowdRec
2013); MIT licence, https://github.com/sidooms/MovieTweetings.
"""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from gyre_core.features import FieldsChanged, FieldValue, UserInteraction

ORIGIN = "https://raw.githubusercontent.com/sidooms/MovieTweetings/master/snapshots/100K/"
CHECKSUMS = {
    "movies.dat": "e63fb84bc734e3c574f135634a40d3cbafab22b8f94f5fc0b80f80d1d2076efc",
    "ratings.dat": "c0dd868c2632d10002ebc928ddc5345f33adeaa59eca52c2941c26a2c5e36fd6",
}
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "movietweetings"
_TIMEOUT_S = 20
_YEAR = re.compile(r"^(.*) \((\d{4})\)$")


class DataMissing(Exception):  # noqa: N818 (reads as what it says)
    """The data set lies nowhere, and cannot be downloaded; says where it was looked for."""


def find() -> Path:
    """The folder that holds the two files, downloaded into the cache if need be.

    Raises:
        DataMissing: with every place that was tried, and why it did not do.
    """
    tried = []
    given = os.environ.get("GYRE_DATA")
    for folder in [*([Path(given), Path(given) / "movietweetings"] if given else []), SHARED, _cache()]:
        problem = _problem(folder)
        if problem is None:
            return folder
        tried.append(f"{folder}: {problem}")
    try:
        return download(_cache())
    except OSError as error:
        tried.append(f"{ORIGIN}: {error}")
    raise DataMissing("; ".join(tried))


def _cache() -> Path:
    root = os.environ.get("GYRE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "gyre") / "movietweetings"


def _problem(folder: Path) -> str | None:
    for name, expected in CHECKSUMS.items():
        if not (folder / name).is_file():
            return f"no {name}"
        if sha256((folder / name).read_bytes()).hexdigest() != expected:
            return f"{name} is not that of the 100K snapshot"
    return None


def download(folder: Path) -> Path:
    """Fetch both files from the public original; each appears only when its checksum is right.

    Raises:
        OSError: the network, or a file that is not what it should be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, expected in CHECKSUMS.items():
        with urllib.request.urlopen(ORIGIN + name, timeout=_TIMEOUT_S) as answer:  # noqa: S310 (a constant https URL)
            content = answer.read()
        if sha256(content).hexdigest() != expected:
            raise OSError(f"{name} has another checksum than the 100K snapshot")
        partial = folder / f"{name}.part"
        partial.write_bytes(content)
        partial.replace(folder / name)
    return folder


def ratings(folder: Path) -> list[UserInteraction]:
    """All ratings in the order of time."""
    found = []
    for line in (folder / "ratings.dat").read_text(encoding="utf-8").splitlines():
        user_id, item_id, value, time = line.split("::")
        found.append(UserInteraction(user_id, item_id, "rating", float(time), float(value)))
    # Seconds repeat: users and items decide, so that the order is the same everywhere.
    return sorted(found, key=lambda each: (each.time, each.user_id, each.item_id))


def films(folder: Path, time: float) -> Iterator[FieldsChanged]:
    """The catalogue as of `time`: title, year, and genres where there are any."""
    for line in (folder / "movies.dat").read_text(encoding="utf-8").splitlines():
        item_id, name, genres = line.split("::")
        match = _YEAR.match(name)
        fields: dict[str, FieldValue] = {"title": match[1] if match else name}
        if match:
            fields["year"] = float(match[2])
        if genres:
            fields["genres"] = genres.split("|")
        yield FieldsChanged("item", item_id, time, fields)
