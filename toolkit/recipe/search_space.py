"""What a sweep varies: for each setting a list of values, or a range to search.

Written as `--set` takes an override: KEY=A,B,C is a list, KEY=LOW..HIGH a range, and anything else one value for all
trials. A comma inside brackets, braces or quotes separates nothing.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from toolkit.errors import RecipeError, UsageError
from toolkit.recipe.document import parse

NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"\s*({NUMBER})\s*\.\.\s*({NUMBER})\s*")
LOGARITHMIC_FROM = 10.0
"""A range of positive numbers that spans this factor or more is searched by orders of magnitude."""
DIGITS = 4
"""Significant digits of a value drawn from a range, so that it can be read and copied."""
MOST_CHECKED = 1000
"""Combinations of values; of a larger space each value is checked, but not every combination."""

Values = Mapping[str, str]
"""A value for each varied setting, by dotted key, as text for `--set`."""


@dataclass(frozen=True)
class ListedValues:
    """A setting that takes the values of a list."""

    key: str
    values: tuple[str, ...]
    """Each as JSON."""

    @property
    def tried_first(self) -> tuple[str, ...]:
        """The values with which the recipe has to be valid."""
        return self.values

    def __str__(self) -> str:
        return f"{self.key}: {', '.join(self.values)}"


@dataclass(frozen=True)
class ValueRange:
    """A setting that takes numbers from a range, its ends included."""

    key: str
    low: float
    high: float
    whole: bool
    """Whether only whole numbers: both ends are written as such."""

    @property
    def logarithmic(self) -> bool:
        """Whether it is searched by orders of magnitude, as a learning rate is."""
        return self.low > 0 and self.high / self.low >= LOGARITHMIC_FROM

    @property
    def tried_first(self) -> tuple[str, ...]:
        """The values with which the recipe has to be valid: the ends."""
        return tuple(str(round(end)) if self.whole else repr(end) for end in (self.low, self.high))

    def text(self, value: float) -> str:
        """A number of the range as text for `--set`, rounded to `DIGITS` unless it is whole; never beyond the ends."""
        if self.whole:
            return str(round(value))
        return repr(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))

    def __str__(self) -> str:
        by = ", by orders of magnitude" if self.logarithmic else ""
        return f"{self.key}: {' to '.join(self.tried_first)}{by}"


@dataclass(frozen=True)
class SearchSpace:
    """All that a sweep varies, and the overrides that are the same in all trials."""

    axes: tuple[ListedValues | ValueRange, ...]
    fixed: tuple[str, ...] = ()
    """KEY=VALUE."""

    @property
    def is_grid(self) -> bool:
        """Whether there are lists alone, so that the combinations can be counted."""
        return all(isinstance(axis, ListedValues) for axis in self.axes)

    @property
    def combinations(self) -> int:
        """The number of combinations in `grid`."""
        return math.prod(len(axis.tried_first) for axis in self.axes)

    def grid(self) -> Iterator[Values]:
        """The combinations of the lists; of a range, its ends."""
        for values in itertools.product(*(axis.tried_first for axis in self.axes)):
            yield dict(zip((axis.key for axis in self.axes), values, strict=True))

    def to_check(self) -> Iterator[Values]:
        """Combinations with which the recipe has to be valid: all, or those that hold each value once."""
        if self.combinations <= MOST_CHECKED:
            yield from self.grid()
            return
        first = {axis.key: axis.tried_first[0] for axis in self.axes}
        for axis in self.axes:
            for value in axis.tried_first:
                yield {**first, axis.key: value}

    def at_the_end(self, values: Values) -> list[str]:
        """The settings whose value is the lowest or the highest number of their list: the best may lie beyond."""
        found = []
        for axis in self.axes:
            numbers = [as_number(value) for value in axis.tried_first] if isinstance(axis, ListedValues) else []
            is_long = len(numbers) > 2 and all(map(math.isfinite, numbers))
            if is_long and as_number(values[axis.key]) in (min(numbers), max(numbers)):
                found.append(axis.key)
        return found

    def overrides(self, values: Values) -> tuple[str, ...]:
        """The overrides of a trial with these values: model before model.dropout, which it would replace."""
        overrides = (*self.fixed, *(f"{key}={value}" for key, value in values.items()))
        return tuple(sorted(overrides, key=lambda override: key_of(override).count(".")))

    def has_to_be_set(self, assignment: str) -> bool:
        """Whether a recipe that holds the first values still needs this override: it varies, or is in what varies."""
        return any(f"{key_of(assignment)}.".startswith(f"{axis.key}.") for axis in self.axes)


def as_number(text: str) -> float:
    """The number that a value's text is; NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def search_space(assignments: Iterable[str]) -> SearchSpace:
    """Read what to vary, and what to set in all trials.

    Raises:
        UsageError: nothing is varied, a setting is given twice, a list has one value, or a range is empty.
    """
    axes, fixed = list[ListedValues | ValueRange](), list[str]()
    for assignment in assignments:
        axis = _axis(assignment)
        if axis is None:
            fixed.append(assignment)
        elif any(axis.key == other.key for other in axes):
            raise UsageError(f"--set {assignment}: {axis.key} is varied twice; write its values as one list")
        else:
            axes.append(axis)
    varied = {axis.key for axis in axes}
    for assignment in fixed:
        if key_of(assignment) in varied:
            raise UsageError(f"--set {assignment}: {key_of(assignment)} is varied by another --set; remove one of them")
    if not axes:
        raise UsageError(
            "nothing is varied: write a list, --set training.learning_rate=1e-3,2e-3, or a range, "
            "--set training.learning_rate=1e-4..1e-2"
        )
    return SearchSpace(tuple(axes), tuple(fixed))


def key_of(assignment: str) -> str:
    """The dotted key of KEY=VALUE."""
    return assignment.partition("=")[0].strip()


def _axis(assignment: str) -> ListedValues | ValueRange | None:
    key, text = key_of(assignment), assignment.partition("=")[2]
    if ends := RANGE.fullmatch(text):
        low, high = map(float, ends.groups())
        if not low < high:
            raise UsageError(f"--set {assignment}: a range goes from a lower to a higher number")
        return ValueRange(key, low, high, whole=all(re.fullmatch(r"[-+]?\d+", end) for end in ends.groups()))
    try:
        values = parse(f"values: [{text}]", "--set").data["values"]
    except RecipeError:
        return None  # what it is instead is told where it is read as an override
    listed = tuple(dict.fromkeys(json.dumps(value, ensure_ascii=False) for value in values))
    if len(listed) == 1 < len(values):
        raise UsageError(f"--set {assignment}: all values are the same; write at least two that differ, or one")
    return ListedValues(key, listed) if len(listed) > 1 else None
