"""Plots as inline SVG, written by hand so that a report is one file that loads nothing."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

_WIDTH, _HEIGHT, _BAR = 520, 180, 16
_CHAR, _MIN_LABEL, _MAX_LABEL = 6.2, 60, 260
"""Width of a letter of the plots' size, and the least and greatest of a column of labels."""
_TOP, _VALUE = 34, 64
"""Room for the legend above a plot, and for a number beside a bar."""
_COLOURS = 6
STYLE = (
    ":root{--c0:#2b6cb0;--c1:#c05621;--c2:#2f855a;--c3:#6b46c1;--c4:#b83280;--c5:#4a5568;--bad:#b00020}"
    "@media(prefers-color-scheme:dark){:root{--c0:#63a4e8;--c1:#ed8b4e;--c2:#5cc48a;--c3:#a88be8;--c4:#e879b9;"
    "--c5:#a0aec0;--bad:#ff6b81}}"
    "svg{max-width:100%;height:auto;display:block}svg text{font-size:11px;fill:currentColor}"
)
"""What a page with figures needs: their colours by the reader's light or dark, and widths that fit the window."""


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
    """Horizontal bars, each with a mark at its threshold where it has one; red above the threshold.

    In the order of `values`; what is negative or not finite is drawn as 0.
    """
    thresholds = thresholds or {}
    shown = {name: max(value, 0.0) if isfinite(value) else 0.0 for name, value in values.items()}
    top = max([*shown.values(), *(value for value in thresholds.values() if isfinite(value))], default=0.0) or 1.0
    label = min(max([_MIN_LABEL, *(_CHAR * len(name) + 8 for name in shown)]), _MAX_LABEL)
    scale = (_WIDTH - label - _VALUE) / top
    parts = []
    for index, (name, value) in enumerate(shown.items()):
        y, mark = index * (_BAR + 4) + 2, thresholds.get(name)
        marked = mark is not None and isfinite(mark)
        colour = "var(--bad)" if mark is not None and value > mark else "var(--c0)"
        # The number stands past the mark, which would run through it.
        end = label + max(value, mark if marked and mark is not None else 0.0) * scale
        parts.append(
            f"<g><title>{escape(name)}: {value:.3g}</title>"
            f'<text x="{label - 6:.1f}" y="{y + 12}" text-anchor="end">{escape(_cut(name, label))}</text>'
            f'<rect x="{label:.1f}" y="{y}" width="{value * scale:.1f}" height="{_BAR}" fill="{colour}"/>'
            f'<text x="{end + 5:.1f}" y="{y + 12}">{value:.3g}</text></g>'
        )
        if mark is not None and marked:
            parts.append(_line(label + mark * scale, y - 1, label + mark * scale, y + _BAR + 1))
    return Figure(title, _svg("".join(parts), len(shown) * (_BAR + 4) + 6))


def shares(title: str, labels: Sequence[str], series: Mapping[str, Sequence[float]]) -> Figure:
    """Grouped vertical bars: the share of each bin (0 to 1), one colour for each series, by its name.

    `labels` name the bins, and every series has a value for each; bins say their name when pointed at.
    """
    top = max((value for values in series.values() for value in values), default=0.0) or 1.0
    slot = _WIDTH / max(len(labels), 1)
    width = slot * 0.8 / max(len(series), 1)
    parts = [_legend(list(series))]
    for position, (name, values) in enumerate(series.items()):
        for index, value in enumerate(values):
            height = value / top * _HEIGHT
            parts.append(
                f'<rect x="{index * slot + position * width + slot * 0.1:.1f}" y="{_TOP + _HEIGHT - height:.1f}" '
                f'width="{width:.1f}" height="{height:.1f}" fill="{_colour(position)}">'
                f"<title>{escape(name)}, {escape(labels[index])}: {value:.3g}</title></rect>"
            )
    parts += [_scale(f"{top:.0%}"), _line(0, _TOP + _HEIGHT, _WIDTH, _TOP + _HEIGHT), *_axis(labels, slot)]
    return Figure(title, _svg("".join(parts), _TOP + _HEIGHT + 20))


def lines(title: str, series: Mapping[str, Sequence[float]], threshold: float | None = None) -> Figure:
    """One line for each series, by its name, over the chunks in order, with the threshold dashed.

    What is not finite is left out, and the line drawn on.
    """
    finite = [value for values in series.values() for value in values if isfinite(value)]
    marks = [threshold] if threshold is not None and isfinite(threshold) else []
    top, bottom = max(finite + marks, default=1.0), min([0.0, *finite, *marks])
    span = (top - bottom) or 1.0
    count = max((len(values) for values in series.values()), default=1)

    def y(value: float) -> float:
        return _TOP + _HEIGHT * (1 - (value - bottom) / span)

    parts = [_legend(list(series)), _scale(f"{top:.3g}")]
    for position, values in enumerate(series.values()):
        points = (
            f"{index * _WIDTH / max(count - 1, 1):.1f},{y(value):.1f}"
            for index, value in enumerate(values)
            if isfinite(value)
        )
        drawn = " ".join(points)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke-width="1.5" stroke="{_colour(position)}"/>')
    parts.append(_line(0, _TOP + _HEIGHT, _WIDTH, _TOP + _HEIGHT))
    parts.extend(_line(0, y(mark), _WIDTH, y(mark), dashed=True) for mark in marks)
    return Figure(title, _svg("".join(parts), _TOP + _HEIGHT + 6))


def _colour(position: int) -> str:
    return f"var(--c{position % _COLOURS})"


def _cut(text: str, width: float) -> str:
    """A text that fits a width, its end left out where it does not."""
    max_chars = max(int((width - 8) / _CHAR), 2)
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"


def _line(x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False) -> str:
    style = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="currentColor"{style}/>'


def _scale(text: str) -> str:
    """What the top of a plot stands for."""
    return f'<text x="{_WIDTH}" y="{_TOP - 4}" text-anchor="end" opacity="0.7">{escape(text)}</text>'


def _axis(labels: Sequence[str], slot: float) -> list[str]:
    """As many names of bins below a plot as there is room for, evenly spaced."""
    room = max((_CHAR * len(label) + 10 for label in labels), default=slot)
    step = max(int(-(-min(room, _WIDTH / 3) // slot)), 1)
    y = _TOP + _HEIGHT + 14
    made = []
    for index in range(0, len(labels), step):
        text, x = escape(_cut(labels[index], step * slot)), (index + 0.5) * slot
        half = _CHAR * len(text) / 2
        x = min(max(x, half), _WIDTH - half)
        made.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle" opacity="0.7">{text}</text>')
    return made


def _legend(names: Sequence[str]) -> str:
    """The series by name and colour, side by side and cut where there are too many."""
    room, x, parts = _WIDTH / max(len(names), 1), 0.0, []
    for position, name in enumerate(names):
        text = _cut(name, max(room - 16, 24))
        parts.append(
            f'<rect x="{x:.1f}" y="4" width="9" height="9" fill="{_colour(position)}"/>'
            f'<text x="{x + 13:.1f}" y="12"><title>{escape(name)}</title>{escape(text)}</text>'
        )
        x += min(_CHAR * len(text) + 30, room)
    return "".join(parts)


def _svg(body: str, height: int) -> str:
    box = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {box}>{body}</svg>'
