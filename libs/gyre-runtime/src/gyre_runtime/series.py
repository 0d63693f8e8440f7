"""Bounds the metric series of a process by model version: a loop makes new versions as long as it runs.

OpenTelemetry keeps each set of labels as long as the process lives, and from the 2,000th of a metric on puts all new
ones together under a label of its own, so that the newest versions would be the ones that nobody sees.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from opentelemetry import metrics as otel

MAX_VERSIONS = 20
"""How many versions of a loop have series: the newest that were named."""


class VersionSeries:
    """Bounds the metric series of one loop to those of its newest versions in use; see the module.

    Args:
        loop: value of the label `loop`.
        max_versions: how many versions have series at once.
    """

    def __init__(self, loop: str, *, max_versions: int = MAX_VERSIONS) -> None:
        self._loop = loop
        self._max_versions = max_versions
        self._named: dict[str, None] = {}

    def note_used(self, versions: Iterable[str]) -> None:
        """Note that versions are in use; beyond `max_versions`, drop the series of those that were noted longest ago.

        The last of one call count as the newest. A version that is not noted keeps its series until others are dropped.
        """
        known = len(self._named)
        for version in versions:
            self._named.pop(version, None)
            self._named[version] = None
        if len(self._named) <= self._max_versions:
            return
        if len(self._named) > known:
            self._named = dict.fromkeys(list(self._named)[-self._max_versions :])
            drop_series(self._loop, self._named)


def drop_series(loop: str, versions: Iterable[str]) -> None:
    """Drop, from all metrics of this process, the series of a loop whose version is none of these, which stay.

    Series without a version, or with an empty one, stay, and so do other loops'. One that is written to again is new: a
    counter begins at 0.
    """
    kept = {*versions, ""}
    for match in _matches():
        with match._lock:  # noqa: SLF001 - nothing public drops a series
            series = match._attributes_aggregation  # noqa: SLF001
            gone = [key for key, each in series.items() if _is_of_other(each._attributes or {}, loop, kept)]  # noqa: SLF001
            for key in gone:
                del series[key]


def _is_of_other(labels: dict[str, Any], loop: str, kept: set[str]) -> bool:
    return labels.get("loop") == loop and labels.get("version", "") not in kept


def _matches() -> Iterator[Any]:
    """What the SDK collects from, for each instrument; nothing before telemetry was set up."""
    consumer = getattr(otel.get_meter_provider(), "_measurement_consumer", None)
    for storage in getattr(consumer, "_reader_storages", {}).values():
        for matches in list(storage._instrument_view_instrument_matches.values()):  # noqa: SLF001
            yield from matches
