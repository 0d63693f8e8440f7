"""Measures the data-quality checks on real data sets beside their baselines: a table, and `var/bench/quality.json`.

Parts: drift-speed, drift, labels, pii (`--part`, all by default). Data sets are read where `--data` says; what is
missing is named, and the one index file that the sets lack is fetched from its original where there is internet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from bench_quality_pii import personal_data
from bench_report import OUT, Row, timed, write
from gyre_quality.bins import Bins, fit_bins
from gyre_quality.divergences import divergences
from gyre_quality.domain_classifier import calibrate_classifier, rows_of
from gyre_quality.drift import DriftRule, Reference, calibrate, judge, sketch_chunks, timeline
from gyre_quality.labels import label_issues, lowest_confidence
from gyre_quality.sketches import Reservoir, Sketch, merged
from scipy.stats import wasserstein_distance

ROOT = Path(__file__).parents[2]
IMDB_INDEX = "imdb_test_set_index_to_filename.json"
IMDB_INDEX_URL = f"https://raw.githubusercontent.com/cleanlab/label-errors/main/dataset_indexing/{IMDB_INDEX}"
IMDB_INDEX_SHA256 = "f603d86279b825dc86cdbb278a25ce1cc1fb7cbc64a7f6102aff52250582cc47"


def main() -> int:
    """Run the parts, print the table, write the JSON."""
    options = _options()
    parts: Mapping[str, Callable[[], Iterable[Row]]] = {
        "drift-speed": lambda: drift_speed(3_000_000 if options.full else options.rows),
        "drift": lambda: drift_detection(options.data / "drift"),
        "labels": lambda: label_noise(options.data / "labels"),
        "pii": lambda: personal_data(options.data),
    }
    rows: list[Row] = []
    missing = 0
    for name in options.part or parts:
        try:
            for row in parts[name]():
                rows.append(row)
                _say(f"{row.system:<28} {row.case:<34} {row.metric:<26} {row.value:>14,.4g} {row.unit}")
        except FileNotFoundError as error:
            missing += 1
            _say(f"{name}: not measured, {error.filename or error} is missing; give --data the folder of the data sets")
    write("quality", rows)
    return 1 if missing else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the speed measurement")
    parser.add_argument("--full", action="store_true", help="3,000,000 rows instead")
    parser.add_argument("--part", action="append", choices=("drift-speed", "drift", "labels", "pii"))
    return parser.parse_args()


# Speed of drift -------------------------------------------------------------------------------------------------------

_COLUMNS, _BLOCK = 100, 100_000


def drift_speed(rows: int) -> Iterator[Row]:
    """Rows a second through sketches of 100 float32 features, and the time of one whole judgement."""
    case = f"{rows:,} x {_COLUMNS} float32"
    bins, fitting = timed(lambda: fit_bins(_named(_block(0))))
    reference = calibrate([Sketch.of_matrix(bins, _block(seed)) for seed in range(1, 7)])
    sketching = sampling = 0.0
    parts, sample = [], Reservoir.empty(5000, _COLUMNS)
    for start in range(0, rows, _BLOCK):
        block = _block(1000 + start)[: rows - start]
        part, spent = timed(lambda block=block: Sketch.of_matrix(bins, block))
        sketching += spent
        ids = np.arange(start, start + len(block))
        sample, spent = timed(lambda block=block, ids=ids, sample=sample: sample.add(block, ids))
        sampling += spent
        parts.append(part)
    drift, judging = timed(lambda: judge(reference, merged(parts, bins)))
    yield Row("gyre", case, "rows sketched", rows / sketching, "rows/s")
    yield Row("gyre", case, "rows sampled", rows / sampling, "rows/s")
    yield Row("gyre", case, "merge and judge", judging, "s")
    yield Row("gyre", case, "four measures in all", sketching + sampling + judging, "s")
    yield Row("gyre", f"{_BLOCK:,} x {_COLUMNS} float32", "bins fitted", fitting, "s")
    yield Row("gyre", case, "features that alarm", len(drift.features), "of 100, none drifts")
    spent = timed(lambda: _each_column(_block(1), _block(2)))[1]
    yield Row("numpy + scipy by column", f"{_BLOCK:,} x {_COLUMNS} float32", "rows compared", _BLOCK / spent, "rows/s")


def _block(seed: int) -> np.ndarray:
    """Normal features, a third of them mostly 0, some values missing."""
    random = np.random.default_rng(seed)
    block = random.standard_normal((_BLOCK, _COLUMNS), dtype=np.float32)
    block[:, ::3][random.random((_BLOCK, len(range(0, _COLUMNS, 3)))) < 0.7] = 0.0
    block[:, 1][random.random(_BLOCK) < 0.05] = np.nan
    return block


def _named(block: np.ndarray) -> dict[str, np.ndarray]:
    return {f"f{index}": block[:, index] for index in range(block.shape[1])}


def _each_column(reference: np.ndarray, chunk: np.ndarray) -> None:
    """What one writes first: quantiles, histograms and scipy's Wasserstein, column by column."""
    for index in range(reference.shape[1]):
        first, second = (block[:, index][~np.isnan(block[:, index])] for block in (reference, chunk))
        edges = np.unique(np.quantile(first, np.linspace(0, 1, 21)))
        p, q = (np.histogram(values, edges)[0] / len(values) + 1e-6 for values in (second, first))
        np.sum((p - q) * np.log(p / q))
        wasserstein_distance(first, second)


# Detection of drift ---------------------------------------------------------------------------------------------------


def drift_detection(folder: Path) -> Iterator[Row]:
    """Employment data: alarms in chunks held out of the reference year, and in each later year."""
    reference = _employment(folder / "employment_MA_reference.pq")
    later = _employment(folder / "employment_MA_analysis.pq")
    years = np.asarray(later.pop("year"))
    del reference["year"]
    bins = fit_bins(reference)
    for rows in (5000, 1000, 250):
        parts = {"2015 (held out)": sketch_chunks(bins, reference, rows)}
        for year in sorted(set(years.tolist())):
            at = np.flatnonzero(years == year)
            parts[str(year)] = sketch_chunks(bins, _slice(later, int(at[0]), int(at[-1]) + 1), rows)
        yield from _alarms(parts, rows)
        if rows == 5000:
            _write_report(parts)
    yield from _classifier_alarms(bins, reference, later, years)


def _alarms(parts: Mapping[str, Sequence[Sketch]], rows: int) -> Iterator[Row]:
    (held, chunks), *rest = parts.items()
    whole = merged(chunks, chunks[0].bins)
    systems: dict[str, Callable[[Reference | None, Sketch, Sketch], int]] = {
        "gyre": lambda reference, _, chunk: len(judge(_given(reference), chunk).features),
        "gyre, no floors": lambda reference, _, chunk: len(
            judge(_given(reference), chunk, DriftRule(floors=())).features
        ),
        "PSI > 0.2": lambda _, reference, chunk: int((divergences(reference, chunk).of("psi") > 0.2).sum()),
        "PSI > 0.1": lambda _, reference, chunk: int((divergences(reference, chunk).of("psi") > 0.1).sum()),
    }
    full = calibrate(chunks)
    # Each chunk of the reference year is judged by a reference that never saw it.
    quarters = [(calibrate(_other(chunks, turn)), chunks[turn::4]) for turn in range(4)]
    for system, named in systems.items():
        found = [named(reference, reference.sketch, chunk) for reference, quarter in quarters for chunk in quarter]
        yield from _alarm_rows(system, f"{rows} rows, {held}", found)
        for year, later in rest:
            yield from _alarm_rows(system, f"{rows} rows, {year}", [named(full, whole, chunk) for chunk in later])


def _write_report(parts: Mapping[str, Sequence[Sketch]]) -> None:
    """The report of the last chunk as a person sees it, with the whole time before it: `var/bench/drift.html`."""
    reference, *later = parts.values()
    calibrated = calibrate(reference)
    drifts = [judge(calibrated, chunk) for chunks in (reference, *later) for chunk in chunks]
    report = drifts[-1].report("employment data, last chunk of 2018")
    OUT.mkdir(parents=True, exist_ok=True)
    page = replace(report, figures=(timeline(drifts), *report.figures)).to_html()
    (OUT / "drift.html").write_text(page, encoding="utf-8")


def _alarm_rows(system: str, case: str, found: Sequence[int]) -> Iterator[Row]:
    yield Row(system, case, "chunks that alarm", sum(count > 0 for count in found), f"of {len(found)}")
    yield Row(system, case, "features named a chunk", float(np.mean(found)), "of 17")


def _classifier_alarms(
    bins: Bins, reference: Mapping[str, Any], later: Mapping[str, Any], years: np.ndarray
) -> Iterator[Row]:
    size = capacity = 5000
    samples = list(_samples(bins, reference, (0, len(next(iter(reference.values())))), size, capacity))
    held = []
    started = time.perf_counter()
    for turn in range(4):
        classifier = calibrate_classifier(bins, _other(samples, turn))
        held += [classifier.check(sample) for sample in samples[turn::4]]
    full = calibrate_classifier(bins, samples)
    spent = time.perf_counter() - started
    yield Row("gyre domain classifier", "calibrated 5 times", "time", spent, "s")
    checks = {"2015 (held out)": held}
    starts = [int(np.argmax(years == year)) for year in sorted(set(years.tolist()))] + [len(years)]
    for year, span in zip(sorted(set(years.tolist())), pairwise(starts), strict=True):
        checks[str(year)] = [full.check(sample) for sample in _samples(bins, later, span, size, capacity)]
    for year, found in checks.items():
        case = f"{size} rows, {year}"
        alarms = sum(not check.passed for check in found)
        yield Row("gyre domain classifier", case, "chunks that alarm", alarms, f"of {len(found)}")
        yield Row("gyre domain classifier", case, "mean area", float(np.mean([c.value for c in found])), "AUC")


def _samples(
    bins: Bins, columns: Mapping[str, Any], span: tuple[int, int], size: int, capacity: int
) -> Iterator[Reservoir]:
    for start in range(span[0], span[1] - size + 1, size):
        values = rows_of(bins, _slice(columns, start, start + size))
        yield Reservoir.empty(capacity, values.shape[1]).add(values, np.arange(start, start + size))


def _other(chunks: Sequence[Any], turn: int) -> list[Any]:
    return [chunk for place, chunk in enumerate(chunks) if place % 4 != turn]


def _given(reference: Reference | None) -> Reference:
    if reference is None:
        raise ValueError("reference: must be calibrated")
    return reference


def _employment(path: Path) -> dict[str, Any]:
    table = pq.read_table(path)
    return {name: table[name] for name in table.column_names if name not in ("id", "prediction", "employed")}


def _slice(columns: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    return {name: column[start:end] for name, column in columns.items()}


# Label noise ----------------------------------------------------------------------------------------------------------


def label_noise(folder: Path) -> Iterator[Row]:
    """Precision and recall against human votes: an error is a label that fewer than 3 of 5 raters chose."""
    votes = {int(each["id"]): each["mturk"]["given"] for each in _json(folder / "mnist_mturk.json")}
    yield from _label_rows(folder, "mnist", votes)
    try:
        index = _imdb_index(folder)
    except FileNotFoundError as error:
        # It is no part of the data sets, so a machine without internet measures all that it can.
        _say(f"labels: imdb not measured, {error.filename} is missing: {error.strerror}")
        return
    names = {name.removesuffix(".txt"): row for row, name in enumerate(index)}
    reviews = _json(folder / "imdb_mturk.json")
    votes = {names[each["id"].removeprefix("test/")]: each["mturk"]["given"] for each in reviews}
    yield from _label_rows(folder, "imdb", votes)


def _label_rows(folder: Path, name: str, votes: Mapping[int, int]) -> Iterator[Row]:
    labels = np.load(folder / f"{name}_test_set_original_labels.npy")
    probabilities = np.load(folder / f"{name}_test_set_pyx.npy")
    errors = {row for row, given in votes.items() if given < 3}
    issues, spent = timed(lambda: label_issues(labels, probabilities))
    size = len(issues.rows)
    case = f"{name}: {len(errors)} errors in {len(votes)} voted on"
    for system, rows in (
        ("confident learning", issues.rows),
        ("lowest self-confidence", lowest_confidence(labels, probabilities, size)),
    ):
        named = set(rows.tolist())
        voted = named & set(votes)
        yield Row(system, case, "labels named", len(named), f"of {len(labels)}")
        yield Row(system, case, "of them voted on", len(voted), f"of {len(named)}")
        yield Row(system, case, "precision", len(named & errors) / max(len(voted), 1), "of those voted on")
        yield Row(system, case, "recall", len(named & errors) / max(len(errors), 1), "of the errors voted on")
    yield Row("confident learning", case, "time", spent, "s")


def _imdb_index(folder: Path) -> list[str]:
    """Which review each row of the IMDB arrays is: beside the data, in `var/bench`, or from its public original."""
    for path in (folder / IMDB_INDEX, OUT / IMDB_INDEX):
        if path.is_file():
            return _json(path)
    try:
        with urllib.request.urlopen(IMDB_INDEX_URL, timeout=10) as response:
            data = response.read()
    except (urllib.error.URLError, TimeoutError) as error:
        raise FileNotFoundError(2, "not in the folder, and no internet", f"{folder / IMDB_INDEX}") from error
    if hashlib.sha256(data).hexdigest() != IMDB_INDEX_SHA256:
        raise FileNotFoundError(2, "the download has another checksum", IMDB_INDEX_URL)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / IMDB_INDEX).write_bytes(data)
    return _json(OUT / IMDB_INDEX)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# ----------------------------------------------------------------------------------------------------------------------


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
