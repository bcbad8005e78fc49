"""Measured points -> the geometry of a line chart, for a template that draws it as SVG.

Decides ranges, ticks and their labels; knows neither colours nor markup. Coordinates are relative to the plot's width
and height, from its upper left corner, so that one drawing fits a phone and a wide screen: curves in thousandths,
ticks and marks in percent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Point = tuple[float, float]

PLOT_SIZE = 1000
"""Width and height of the plot in the units of its curves."""
MAX_POINTS = 800
"""A curve with more points is thinned: no screen can show them, and the page should stay small."""


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis, in percent of its length from the left or from the top."""

    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str
    points: tuple[Point, ...]
    """The measured values, thinned; shown on hover."""
    path: str
    """The same as an SVG path; broken at non-finite values."""
    dots: str
    """An SVG path with a dot for each point if there are few, else empty."""


@dataclass(frozen=True)
class Mark:
    """A vertical line with a label that says what happened there."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """The geometry and labels of a drawing."""

    title: str
    unit: str
    description: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    x_range: tuple[float, float]
    """Of the horizontal axis; if that is logarithmic, of the decimal logarithms."""
    y_range: tuple[float, float]
    over: str = "optimizer step"
    """What the horizontal axis shows."""
    logarithmic: bool = False
    """Whether the horizontal axis is."""

    @property
    def data(self) -> str:
        """The measured points as JSON, which has no NaN; non-finite values become null."""
        curves = [
            [(x, float(f"{y:.6g}") if math.isfinite(y) else None) for x, y in curve.points] for curve in self.curves
        ]
        labels = [curve.label for curve in self.curves]
        axis = {"range": self.x_range, "over": self.over, "log": self.logarithmic}
        return json.dumps({"labels": labels, "curves": curves, **axis}, separators=(",", ":"))


def line_chart(
    title: str,
    unit: str,
    measured: Iterable[tuple[str, Sequence[Point]]],
    *,
    from_zero: bool = False,
    marks: Iterable[tuple[float, str]] = (),
    over: str = "optimizer step",
    logarithmic: bool = False,
    joined: bool = True,
) -> Chart | None:
    """Lay out a chart of (label, points) over steps; None if no finite value was measured.

    A curve with few points, such as that of the evaluations, gets a dot for each.

    Args:
        title: what is measured.
        unit: its unit.
        measured: a label and points for each curve, in the order of their x.
        from_zero: whether the vertical axis begins at zero.
        marks: vertical lines, each with its label.
        over: what the horizontal axis shows, if not steps.
        logarithmic: whether the horizontal axis is; then every x is positive.
        joined: whether a line joins the points.
    """
    curves = [(label, thinned(points)) for label, points in measured]
    finite = [(x, y) for _, points in curves for x, y in points if math.isfinite(y)]
    if not finite:
        return None

    def along(x: float) -> float:
        return math.log10(x) if logarithmic else x

    is_steps = over == Chart.over
    x_range = _range([along(x) for x, _ in finite], margin=0.0 if is_steps else 0.04)
    y_range = _range([y for _, y in finite], margin=0.06, floor=0.0 if from_zero else None)

    def place(point: Point) -> str:
        return f"{PLOT_SIZE * _share(along(point[0]), x_range):.1f} {PLOT_SIZE * (1 - _share(point[1], y_range)):.1f}"

    drawn = tuple(_curve(label, points, place, joined=joined) for label, points in curves if points)
    x_ticks = decades(*x_range) if logarithmic else ticks(*x_range, count=6, smallest=1 if is_steps else 0)
    return Chart(
        title=title,
        unit=unit,
        description=_description(title, unit, drawn, over),
        curves=drawn,
        x_ticks=tuple(Tick(100 * _share(along(value), x_range), short(value)) for value in x_ticks),
        y_ticks=tuple(Tick(100 * (1 - _share(value, y_range)), short(value)) for value in ticks(*y_range, count=5)),
        marks=tuple(Mark(100 * _share(x, x_range), label) for x, label in marks if x_range[0] <= x <= x_range[1]),
        x_range=x_range,
        y_range=y_range,
        over=over,
        logarithmic=logarithmic,
    )


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> tuple[Point, ...]:
    """At most about `limit` of the points: the lowest and highest of each stretch, so that spikes survive."""
    if len(points) <= limit:
        return tuple(points)
    kept = {0, len(points) - 1}
    width = math.ceil(2 * len(points) / limit)
    for start in range(0, len(points), width):
        stretch = range(start, min(start + width, len(points)))
        numbers = [index for index in stretch if math.isfinite(points[index][1])]
        if len(numbers) < len(stretch):
            kept.add(next(index for index in stretch if index not in numbers))
        if numbers:
            kept |= {min(numbers, key=lambda index: points[index][1]), max(numbers, key=lambda index: points[index][1])}
    return tuple(points[index] for index in sorted(kept))


def ticks(low: float, high: float, *, count: int, smallest: float = 0.0) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten apart) between low and high."""
    least = max((high - low) / count, smallest)
    power = 10.0 ** math.floor(math.log10(least))
    apart = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= least * (1 - 1e-9))
    apart = math.ceil(apart) if smallest >= 1 else apart
    first, last = math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9)
    return [float(f"{index * apart:.12g}") for index in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Round numbers between these powers of ten: 1, 2 and 5 times each power or, of many, the powers alone."""
    factors = (1, 2, 5) if high - low <= 2 else (1,)
    powers = range(math.floor(low), math.floor(high) + 1)
    found = [float(f"{factor}e{power}") for power in powers for factor in factors]
    return [value for value in found if low <= math.log10(value) <= high]


def short(value: float) -> str:
    """A number as an axis shows it: 25K, 1.5M, 5e-4."""
    size = abs(value)
    for bound, letter in ((1e9, "B"), (1e6, "M"), (1e4, "K")):
        if size >= bound:
            return f"{value / (1e3 if letter == 'K' else bound):.4g}{letter}"
    if 0 < size < 1e-3:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _range(values: Sequence[float], *, margin: float, floor: float | None = None) -> tuple[float, float]:
    low, high = min(values), max(values)
    low = low if floor is None else min(floor, low)
    if low == high:  # a single point goes in the middle
        apart = abs(low) / 2 or 1.0
        return low - apart, high + apart
    room = margin * (high - low)
    return (low if floor is not None else low - room), high + room


def _share(value: float, within: tuple[float, float]) -> float:
    return (value - within[0]) / (within[1] - within[0])


def _curve(label: str, points: tuple[Point, ...], place: Callable[[Point], str], *, joined: bool) -> Curve:
    path, pen_is_down = [], False
    for point in points:
        if math.isfinite(point[1]):
            path.append(f"{'L' if pen_is_down and joined else 'M'}{place(point)}")
        pen_is_down = math.isfinite(point[1])
    few = len(points) <= 40 or not joined
    dots = "".join(f"M{place(point)}h0" for point in points if few and math.isfinite(point[1]))
    return Curve(label, points, "".join(path), dots)


def _description(title: str, unit: str, curves: Iterable[Curve], over: str) -> str:
    """What the curves show, for people who cannot see them."""
    sentences = []
    at = "step" if over == Chart.over else over
    for curve in curves:
        finite = [(x, y) for x, y in curve.points if math.isfinite(y)]
        if finite:
            (first, start), (last, end) = finite[0], finite[-1]
            sentences.append(f"{curve.label}: {short(start)} at {at} {first:g}, {short(end)} at {at} {last:g}.")
    about = f"{title} ({unit})" if unit else title
    return f"{about} over {over}{'s' * (over == Chart.over)}. " + " ".join(sentences)
