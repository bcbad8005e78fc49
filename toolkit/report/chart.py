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
    y_range: tuple[float, float]

    @property
    def data(self) -> str:
        """The measured points as JSON, which has no NaN; non-finite values become null."""
        curves = [
            [(x, float(f"{y:.6g}") if math.isfinite(y) else None) for x, y in curve.points] for curve in self.curves
        ]
        labels = [curve.label for curve in self.curves]
        return json.dumps({"labels": labels, "curves": curves, "range": self.x_range}, separators=(",", ":"))


def line_chart(
    title: str,
    unit: str,
    measured: Iterable[tuple[str, Sequence[Point]]],
    *,
    from_zero: bool = False,
    marks: Iterable[tuple[float, str]] = (),
) -> Chart | None:
    """Lay out a chart of (label, points) over steps; None if no finite value was measured.

    A curve with few points, such as that of the evaluations, gets a dot for each.
    """
    curves = [(label, thinned(points)) for label, points in measured]
    finite = [(x, y) for _, points in curves for x, y in points if math.isfinite(y)]
    if not finite:
        return None
    x_range = _range([x for x, _ in finite], margin=0.0)
    y_range = _range([y for _, y in finite], margin=0.06, floor=0.0 if from_zero else None)

    def place(point: Point) -> str:
        return f"{PLOT_SIZE * _share(point[0], x_range):.1f} {PLOT_SIZE * (1 - _share(point[1], y_range)):.1f}"

    drawn = tuple(_curve(label, points, place) for label, points in curves if points)
    return Chart(
        title=title,
        unit=unit,
        description=_description(title, unit, drawn),
        curves=drawn,
        x_ticks=tuple(
            Tick(100 * _share(value, x_range), short(value)) for value in ticks(*x_range, count=6, smallest=1)
        ),
        y_ticks=tuple(Tick(100 * (1 - _share(value, y_range)), short(value)) for value in ticks(*y_range, count=5)),
        marks=tuple(Mark(100 * _share(x, x_range), label) for x, label in marks if x_range[0] <= x <= x_range[1]),
        x_range=x_range,
        y_range=y_range,
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


def _curve(label: str, points: tuple[Point, ...], place: Callable[[Point], str]) -> Curve:
    path, pen_is_down = [], False
    for point in points:
        if math.isfinite(point[1]):
            path.append(f"{'L' if pen_is_down else 'M'}{place(point)}")
        pen_is_down = math.isfinite(point[1])
    few = len(points) <= 40
    dots = "".join(f"M{place(point)}h0" for point in points if few and math.isfinite(point[1]))
    return Curve(label, points, "".join(path), dots)


def _description(title: str, unit: str, curves: Iterable[Curve]) -> str:
    """What the curves show, for people who cannot see them."""
    sentences = []
    for curve in curves:
        finite = [(x, y) for x, y in curve.points if math.isfinite(y)]
        if finite:
            (first, start), (last, end) = finite[0], finite[-1]
            sentences.append(f"{curve.label}: {short(start)} at step {first:g}, {short(end)} at step {last:g}.")
    about = f"{title} ({unit})" if unit else title
    return f"{about} over optimizer steps. " + " ".join(sentences)
