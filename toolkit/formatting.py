"""Human-readable numbers: one format per quantity, in messages, tables and the report; JSON has the raw values."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

MAX_SHOWN_PERPLEXITY = 1e6
"""Uniform guessing gives the vocabulary size, at most a few hundred thousand; above this the digits mean nothing."""
MIN_TEXT_COLUMNS = 24
"""Columns that text needs to fit beside a name; with fewer it goes below."""
SUFFIXES = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
"""Units of a count as people write it."""
UNWRAPPED_WIDTH = 10_000
"""The width where output is not a terminal: nothing wraps there, so that `grep` finds whole lines."""


def size(of_bytes: float) -> str:
    """Bytes to three significant digits, in decimal units: 4.02 GB, 727 MB, 9.62 kB."""
    number, unit = _scaled(of_bytes, ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB")))
    if not unit:
        return counted(round(number), "byte")
    return f"{number:#.3g}".rstrip(".") + unit


def compact(number: float) -> str:
    """A count to about three significant digits: 950, 9,500, 12.3K, 124M, 1.3B."""
    if abs(number) < 9_999.5:
        return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
    scaled, unit = _scaled(number, ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")))
    return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.3g}{unit}"


def parsed_count(written: float | str) -> float | None:
    """A count of at least 1 as people write it, 100M, 2B, 1.5e9; None if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([KMBT]?)", str(written).strip(), re.IGNORECASE)
    number = float(match[1]) * SUFFIXES[match[2].upper()] if match else 0.0
    return number if 1 <= number < math.inf else None


def counted(number: int, noun: str) -> str:
    """An exact count of things: 1 step, 1,000 steps."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def share(part: int, whole: int) -> str:
    """A part of a whole in percent: 12%, 0.31%; 99.6%, where it is nearly all."""
    percent = 100 * part / whole if whole else 0.0
    digits = ".2g" if percent < 9.95 else ".0f" if percent < 99.5 or part == whole else ".1f"
    return f"{percent:{digits}}%"


def duration(seconds: float) -> str:
    """A duration in its two largest units: 260 ms, 5.2 s, 3 min 13 s, 5 h 12 min, 3 d 4 h."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms" if seconds > 0 else "0 s"
    if seconds < 59.5:
        return f"{seconds:.2g} s"
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    rounded = round(seconds)
    large, small = next(pair for pair in itertools.pairwise(units) if rounded >= pair[0][1])
    rest = rounded % large[1] // small[1]
    return f"{rounded // large[1]} {large[0]}" + (f" {rest} {small[0]}" if rest else "")


def moment(iso: str) -> str:
    """A timestamp of run.json, which is in UTC: 2026-01-31 08:02 UTC."""
    return f"{iso[:16].replace('T', ' ')} UTC"


def loss(value: float) -> str:
    """A loss in nats per token."""
    return f"{value:.4f}"


def perplexity(value: float) -> str:
    """A perplexity to its significant digits: 22.72, 412.3, 60,300."""
    if value >= MAX_SHOWN_PERPLEXITY:
        return "above a million"
    if value >= 999.95:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.{2 if value < 99.995 else 1}f}"


def beside(entries: Mapping[str, Any], width: int, *, indent: int = 0) -> list[str]:
    """Lines of names and values; a long value wraps beside its name, or below it if there is no room."""
    margin = indent + max(map(len, entries)) + 2
    below = width - margin < MIN_TEXT_COLUMNS
    lines = []
    for name, value in entries.items():
        column = indent + 2 if below else margin
        words = [line for paragraph in str(value).splitlines() for line in wrapped(paragraph, width - column)]
        first = [" " * indent + name] if below else [f"{' ' * indent}{name}".ljust(margin) + "".join(words[:1])]
        lines += [*first, *(" " * column + line for line in (words if below else words[1:]))]
    return [line.rstrip() for line in lines]


def wrapped(paragraph: str, width: int) -> list[str]:
    """Lines of at most this width; but a long word, such as a path that the user may copy, stays whole."""
    return textwrap.wrap(paragraph, max(MIN_TEXT_COLUMNS, width), break_long_words=False, break_on_hyphens=False) or [
        ""
    ]


def _scaled(number: float, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The number in the largest unit of which it has at least one after rounding to three digits."""
    return next(((number / scale, unit) for scale, unit in units if abs(number) >= 0.9995 * scale), (number, ""))
