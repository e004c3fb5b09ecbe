"""Plots as SVG text, for a page that takes nothing from elsewhere: colours are the page's, by class.

Everything is drawn 360 units wide, a phone's width, so that texts stay legible there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from artkv.evaluation.calibration import Bin

_WIDTH = 360
_LEFT, _RIGHT, _TOP = 46, 10, 10
# More points than pixels are averaged.
_MOST_POINTS = 300
_ROW, _MARK = 18, 13


@dataclass(frozen=True)
class Interval:
    """A value with the interval from low to high, and what the tooltip says of it."""

    value: float
    low: float
    high: float
    label: str


def line_plot(title: str, points: Sequence[tuple[float, float]], lowest: float | None = None) -> Markup:
    """A curve over steps with its first, last and extreme values in words, for those who cannot see it.

    points: (step, value) by step, at least one. lowest: where the axis of values begins, at most the least of them.
    """
    height, bottom = 196, 160
    means = _averaged(points)
    values = [value for _, value in means]
    low, high = min(values) if lowest is None else lowest, max(values)
    y_ticks = ticks(low, high)
    x_ticks = ticks(means[0][0], means[-1][0])
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    first, last = means[0][0], means[-1][0]

    def x(step: float) -> float:
        return _LEFT + (step - first) / ((last - first) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return bottom - (value - low) / ((high - low) or 1) * (bottom - _TOP)

    parts = []
    for tick in y_ticks:
        parts.append(_line(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), "grid"))
        parts.append(_text(_LEFT - 5, y(tick) + 3.5, number(tick), "end"))
    inside = [tick for tick in x_ticks if first <= tick <= last]
    parts += [_text(x(tick), bottom + 15, number(tick), "middle") for tick in inside]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 29, "step", "middle"))
    if len(means) > 1:
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in means)
        parts.append(Markup('<polyline class="curve" points="{}"/>').format(path))
    if len(means) < 30:
        parts += [_dot(x(step), y(value), "dot") for step, value in means]
    described = (
        f"{len(points)} values over steps {number(points[0][0])} to {number(points[-1][0])}: first "
        f"{number(points[0][1])}, last {number(points[-1][1])}, least {number(min(value for _, value in points))}, "
        f"most {number(max(value for _, value in points))}."
    )
    return _svg(title, described, height, parts)


def interval_plot(
    title: str, columns: Sequence[str], groups: Sequence[tuple[str, Sequence[Interval | None]]]
) -> Markup:
    """Values from 0 to 1 with their intervals: a block for each group, a line in it for each column.

    groups: (name, an interval for each of `columns` or None where there is none).
    """
    # Names of encoders are longer than those of the usual columns, and end with what sets them apart.
    left, most = (88, 15) if all(len(column) <= 15 for column in columns) else (138, 21)
    right = 46
    parts: list[Markup] = []
    spoken = []
    top = _TOP + 6

    def x(value: float) -> float:
        return left + value * (_WIDTH - left - right)

    heights = [_ROW + _MARK * sum(interval is not None for interval in intervals) + 6 for _, intervals in groups]
    bottom = top + sum(heights)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_line(x(tick), top - 4, x(tick), bottom, "grid"))
        parts.append(_text(x(tick), bottom + 14, number(tick), "middle"))
    at = top
    for (name, intervals), height in zip(groups, heights, strict=True):
        parts.append(_text(4, at + 11, _shortened(name, 34), "start", "group"))
        line = at + _ROW + 4
        for place, (column, interval) in enumerate(zip(columns, intervals, strict=True)):
            if interval is None:
                continue
            spoken.append(f"{name}, {column}: {interval.label}.")
            parts.append(_text(left - 6, line + 3.5, _without_middle(column, most), "end"))
            parts.append(_line(x(interval.low), line, x(interval.high), line, f"whisker s{place % 6}"))
            parts.append(_mark(x(interval.value), line, place))
            parts.append(_text(_WIDTH - right + 8, line + 3.5, f"{interval.value:.3f}", "start"))
            line += _MARK
        at += height
    return _svg(title, " ".join(spoken), round(bottom + 22), parts)


def _without_middle(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"


def bar_plot(title: str, bars: Sequence[tuple[str, float]], highest: float) -> Markup:
    """Bars from 0 to `highest`, one below the other, each with its value as a percentage."""
    left, right = 88, 46
    parts: list[Markup] = []
    for place, (name, value) in enumerate(bars):
        y = _TOP + place * 18
        width = value / (highest or 1) * (_WIDTH - left - right)
        parts.append(_text(left - 6, y + 11, _shortened(name, 15), "end"))
        parts.append(_bar(left, y, max(width, 0.5), 13))
        parts.append(_text(left + width + 5, y + 11, f"{100 * value:.1f}%", "start"))
    described = " ".join(f"{name}: {100 * value:.1f}%." for name, value in bars)
    return _svg(title, described, _TOP + len(bars) * 18 + 4, parts)


def reliability_plot(title: str, bins: Sequence[Bin]) -> Markup:
    """Accuracy over probability: a bar for each bin with questions, up to the diagonal if all is well; below, how many.

    A bar is as high as the bin's accuracy, and a mark on it stands at the mean probability of its questions.
    """
    bottom, strip_top, strip = 200, 222, 28
    most = max(one.count for one in bins)
    parts = []

    def x(value: float) -> float:
        return _LEFT + value * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return bottom - value * (bottom - _TOP)

    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_line(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), "grid"))
        parts.append(_text(_LEFT - 5, y(tick) + 3.5, number(tick), "end"))
        parts.append(_text(x(tick), bottom + 14, number(tick), "end" if tick == 1 else "middle"))
    asked = [one for one in bins if one.count]
    for one in asked:
        left, width = x(one.low) + 1, x(one.high) - x(one.low) - 2
        parts.append(_bar(left, y(one.accuracy), width, bottom - y(one.accuracy), "bar pale"))
        height = strip * one.count / most
        parts.append(_bar(left, strip_top + strip - height, width, height))
    parts.append(_line(x(0), y(0), x(1), y(1), "diagonal"))
    parts += [_mark(x(one.confidence), y(one.accuracy), 1) for one in asked]
    parts.append(_text(_LEFT - 5, strip_top + strip, "0", "end"))
    parts.append(_text(_LEFT - 5, strip_top + 8, f"{most:,}", "end"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, strip_top + strip + 16, "probability of the choice", "middle"))
    described = " ".join(
        f"Of {one.count:,} choices with probabilities of {one.low:.2f} to {one.high:.2f}, {one.confidence:.2f} in the "
        f"mean, {100 * one.accuracy:.0f}% are right."
        for one in asked
    )
    return _svg(title, described, strip_top + strip + 22, parts)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Numbers that cover `low` to `high`, `most` + 1 at most: multiples of 1, 2 or 5 times a power of 10."""
    if not high > low:
        high = low + (abs(low) or 1)
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if (high - low) / (factor * power) <= most - 1)
    return [step * place for place in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def number(value: float) -> str:
    """Four digits at most, without zeros at the end: 0.05, 1.2e-05, 864."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return f"{round(value, 3 - math.floor(math.log10(abs(value)))):,}".removesuffix(".0")
    return f"{value:.3g}"


def _averaged(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over neighbours, `_MOST_POINTS` at most; the points themselves where they are no more."""
    at_once = math.ceil(len(points) / _MOST_POINTS)
    chunks = [points[start : start + at_once] for start in range(0, len(points), at_once)]
    return [(sum(s for s, _ in chunk) / len(chunk), sum(v for _, v in chunk) / len(chunk)) for chunk in chunks]


def _svg(title: str, described: str, height: float, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, height, f"{title}. {described}", Markup("").join(parts)
    )


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, style, text)


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, style)


def _bar(x: float, y: float, width: float, height: float, style: str = "bar") -> Markup:
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        style, x, y, width, height
    )


def _dot(x: float, y: float, style: str) -> Markup:
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.5" class="{}"/>').format(x, y, style)


def _mark(x: float, y: float, place: int) -> Markup:
    """A shape of its own for each column, since not everybody can tell the colours apart."""
    shapes = (
        "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z", "M-3.5,-3.5h7v7h-7z", "M0,-4.5l4.5,4.5l-4.5,4.5l-4.5,-4.5z",
        "M0,-4.5l4.5,8h-9z", "M0,4.5l4.5,-8h-9z", "M-4.5,-1.5h9v3h-9z",
    )  # fmt: skip
    return Markup('<path transform="translate({:.1f} {:.1f})" d="{}" class="mark s{}"/>').format(
        x, y, shapes[place % 6], place % 6
    )


def _shortened(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
