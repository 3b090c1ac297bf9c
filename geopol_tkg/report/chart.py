"""Charts as inline SVG: no script, colours from the page's style sheet, a title and description for each.

A series is told apart by its colour, its marker and, for baselines, a dashed line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 7
_WIDTH, _HEIGHT = 820, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 40, 32, 46
_ROW, _NAMES, _NOTES = 27, 250, 92  # of dot plots
_APART = 3.5  # between the markers of a row, so that none hides another
_LONGEST_NAME = 34
_MARKERS = (
    '<circle r="4.2"/>',
    '<rect x="-4" y="-4" width="8" height="8"/>',
    '<path d="M0-5 5 4-5 4z"/>',
    '<path d="M0-5.4 5.4 0 0 5.4-5.4 0z"/>',
    '<path d="M0 5 5-4-5-4z"/>',
)

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points of one model, in order; ``number`` chooses colour and marker."""

    name: str
    number: int
    points: Sequence[Point]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """A range of values with labelled ticks."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(
    label: str, values: Sequence[float], *, from_zero: bool = False, integers: bool = False, snug: bool = False
) -> Axis:
    """An axis around values, with ticks at round numbers.

    Args:
        snug: ends at the extreme values, not at the ticks around them.
    """
    low, high = min(values), max(values)
    low = min(low, 0.0) if from_zero else low
    if high - low < 1e-300:  # nothing, or so little that a fifth of it may not be a number
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    step = _round_step((high - low) / 5)
    step = max(step, 1.0) if integers else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [(i * step, f"{i * step:,.{digits}f}") for i in range(first, last + 1)]
    if snug:
        return Axis(label, low, high, tuple(tick for tick in ticks if low <= tick[0] <= high))
    return Axis(label, ticks[0][0], ticks[-1][0], tuple(ticks))


def probability_axis(label: str, lowest: float) -> Axis:
    """A logarithmic axis in percent, down to a power of ten."""
    decades = max(1, math.ceil(-math.log10(lowest)))
    ticks = tuple((10.0**-i, f"{10.0 ** (2 - i):.{max(0, i - 2)}f} %") for i in range(decades, -1, -1))
    return Axis(label, 10.0**-decades, 1.0, ticks, log=True)


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, the first not below."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def line_chart(
    series: Sequence[Series], *, slug: str, title: str, description: str, x: Axis, y: Axis, diagonal: bool = False
) -> str:
    """Lines with a marker at each point; ``diagonal`` draws where x equals y (the same range on both axes)."""
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def across(value: float) -> float:
        return _LEFT + x.place(value) * (right - _LEFT)

    def down(value: float) -> float:
        return bottom - y.place(value) * (bottom - _TOP)

    parts = [_text(0, 14, y.label, "label")]
    for value, text in y.ticks:
        parts.append(_line(_LEFT, down(value), right, down(value), "grid"))
        parts.append(_text(_LEFT - 8, down(value) + 4, text, "tick end"))
    for value, text in x.ticks:
        parts.append(_line(across(value), bottom, across(value), bottom + 5, "axis"))
        parts.append(_text(across(value), bottom + 19, text, "tick middle"))
    parts.append(_line(_LEFT, bottom, right, bottom, "axis"))
    parts.append(_text(right, _HEIGHT - 6, x.label, "label end"))
    if diagonal:
        parts.append(_line(_LEFT, bottom, right, _TOP, "diagonal"))
    parts += [_polyline(one, [(across(a), down(b)) for a, b in one.points]) for one in series]
    return _svg(slug, title, description, _HEIGHT, parts)


def dot_plot(
    rows: Sequence[tuple[str, str]], series: Sequence[Series], *, slug: str, title: str, description: str, x: Axis
) -> str:
    """A row for each name with its note on the right; a point of a series is ``(value, row number)``."""
    left, right = _NAMES, _WIDTH - _NOTES
    bottom = _TOP + len(rows) * _ROW

    def across(value: float) -> float:
        return left + x.place(value) * (right - left)

    parts = [_text(right, 14, x.label, "label end")]
    for value, text in x.ticks:
        parts.append(_line(across(value), _TOP - 6, across(value), bottom, "grid"))
        parts.append(_text(across(value), bottom + 18, text, "tick middle"))
    for i, (name, note) in enumerate(rows):
        middle = _TOP + (i + 0.5) * _ROW
        parts.append(_line(left, middle, right, middle, "rule"))
        parts.append(_text(left - 12, middle + 4, _shortened(name), "name end"))
        parts.append(_text(_WIDTH - 4, middle + 4, note, "tick end"))
    for i, one in enumerate(series):
        shift = (i - (len(series) - 1) / 2) * min(_APART, (_ROW - 9) / len(series))
        markers = [
            marker(
                one.number,
                across(value),
                _TOP + (row + 0.5) * _ROW + shift,
                f"{one.name}, {rows[int(row)][0]}: {value:.4f}",
            )
            for value, row in one.points
        ]
        parts.append(f'<g class="s{one.number % COLOURS}">{"".join(markers)}</g>')
    return _svg(slug, title, description, bottom + 28, parts)


def marker(number: int, x: float, y: float, tip: str = "") -> str:
    """The marker of a series; ``tip`` appears when it is pointed at."""
    shape = _MARKERS[number % len(_MARKERS)]
    tooltip = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<g class="marker" transform="translate({x:.1f} {y:.1f})">{tooltip}{shape}</g>'


def _polyline(series: Series, places: Sequence[Point]) -> str:
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    tips = [f"{series.name}: {a:g}, {b:.4g}" for a, b in series.points]
    markers = [marker(series.number, *place, tip) for place, tip in zip(places, tips, strict=True)]
    dashed = " dashed" if series.dashed else ""
    return f'<g class="s{series.number % COLOURS}{dashed}"><polyline points="{path}"/>{"".join(markers)}</g>'


def _svg(slug: str, title: str, description: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-labelledby="{slug}-title {slug}-text">'
        f'<title id="{slug}-title">{escape(title)}</title><desc id="{slug}-text">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
