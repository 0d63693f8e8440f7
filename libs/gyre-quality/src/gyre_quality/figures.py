"""Plots as inline SVG, written by hand so that a report is one file that loads nothing."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

_WIDTH, _HEIGHT, _LABEL, _BAR = 520, 180, 150, 16
_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568")


@dataclass(frozen=True, slots=True)
class Figure:
    """A titled SVG."""

    title: str
    svg: str

    def to_html(self) -> str:
        """The figure with its caption."""
        return f"<figure><figcaption>{escape(self.title)}</figcaption>{self.svg}</figure>"


def escape(text: str) -> str:
    """The text as HTML and SVG may hold it, attributes included."""
    return html.escape(text, quote=True)


def bars(title: str, values: Mapping[str, float], thresholds: Mapping[str, float] | None = None) -> Figure:
    """Horizontal bars, each with a mark at its threshold where it has one; red beyond the threshold."""
    thresholds = thresholds or {}
    shown = {name: value if isfinite(value) else 0.0 for name, value in values.items()}
    top = max([*shown.values(), *(value for value in thresholds.values() if isfinite(value))], default=0.0) or 1.0
    scale = (_WIDTH - _LABEL - 70) / top
    parts = []
    for index, (name, value) in enumerate(shown.items()):
        y = index * (_BAR + 4)
        mark = thresholds.get(name)
        colour = "#b00020" if mark is not None and value > mark else _COLOURS[0]
        parts.append(
            f'<text x="{_LABEL - 6}" y="{y + 12}" text-anchor="end" font-size="11">{escape(name)}</text>'
            f'<rect x="{_LABEL}" y="{y}" width="{max(value, 0) * scale:.1f}" height="{_BAR}" fill="{colour}"/>'
            f'<text x="{_LABEL + max(value, 0) * scale + 4:.1f}" y="{y + 12}" font-size="11">{value:.3g}</text>'
        )
        if mark is not None and isfinite(mark):
            x = _LABEL + mark * scale
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 1}" y2="{y + _BAR + 1}" stroke="#222"/>')
    return Figure(title, _svg("".join(parts), len(shown) * (_BAR + 4) + 4))


def shares(title: str, labels: Sequence[str], series: Mapping[str, Sequence[float]]) -> Figure:
    """Grouped vertical bars: the share of each bin, one colour for each series."""
    top = max((value for values in series.values() for value in values), default=0.0) or 1.0
    slot = _WIDTH / max(len(labels), 1)
    width = slot * 0.8 / max(len(series), 1)
    parts = []
    for position, (name, values) in enumerate(series.items()):
        colour = _COLOURS[position % len(_COLOURS)]
        for index, value in enumerate(values):
            height = value / top * _HEIGHT
            parts.append(
                f'<rect x="{index * slot + position * width:.1f}" y="{20 + _HEIGHT - height:.1f}" '
                f'width="{width:.1f}" height="{height:.1f}" fill="{colour}">'
                f"<title>{escape(name)}, {escape(labels[index])}: {value:.3g}</title></rect>"
            )
        parts.append(_legend(name, position, colour))
    return Figure(title, _svg("".join(parts), _HEIGHT + 24))


def lines(title: str, series: Mapping[str, Sequence[float]], threshold: float | None = None) -> Figure:
    """One line for each series over the chunks in order, with the threshold dashed."""
    finite = [value for values in series.values() for value in values if isfinite(value)]
    marks = [threshold] if threshold is not None and isfinite(threshold) else []
    top, bottom = max(finite + marks, default=1.0), min([0.0, *finite, *marks])
    span = (top - bottom) or 1.0
    count = max((len(values) for values in series.values()), default=1)

    def y(value: float) -> float:
        return 20 + _HEIGHT * (1 - (value - bottom) / span)

    parts = []
    for position, (name, values) in enumerate(series.items()):
        colour = _COLOURS[position % len(_COLOURS)]
        points = (
            f"{index * _WIDTH / max(count - 1, 1):.1f},{y(value):.1f}"
            for index, value in enumerate(values)
            if isfinite(value)
        )
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}"/>')
        parts.append(_legend(name, position, colour))
    parts.extend(
        f'<line x1="0" x2="{_WIDTH}" y1="{y(mark):.1f}" y2="{y(mark):.1f}" stroke="#222" {_DASHED}/>' for mark in marks
    )
    return Figure(title, _svg("".join(parts), _HEIGHT + 24))


_DASHED = 'stroke-dasharray="4 3"'


def _legend(name: str, position: int, colour: str) -> str:
    return f'<text x="{4 + position * 120}" y="12" font-size="11" fill="{colour}">{escape(name)}</text>'


def _svg(body: str, height: int) -> str:
    box = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {box}>{body}</svg>'
