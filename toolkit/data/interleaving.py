"""Which source the n-th block of a mixture comes from: a pure function of its position, the same for any run.

Within a stage the shares are whole numbers of blocks in a cycle, and one cycle is laid out so that at each of its
blocks every source is within less than one block of its share; then it repeats. So any position is found at once, and
a run of any length takes the memory of a cycle.

The layout is Tijdeman's for the chairman assignment problem, which is optimal: with n sources the difference is at most
1 - 1 / (2n - 2) blocks. R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

LONGEST_CYCLE = 100_000
"""Blocks in a cycle, at most: shares of more than five digits are rounded to those."""
ROUNDS = 6
"""Of a Feistel network; from four on its permutations cannot be told from random ones."""


def cycle_of(weights: Mapping[str, float]) -> dict[str, int]:
    """Blocks of each source in the shortest cycle that has these shares exactly, or in the longest one, rounded."""
    exact = {name: Fraction(repr(float(weight))) for name, weight in weights.items()}
    total = sum(exact.values())
    shares = {name: weight / total for name, weight in exact.items()}
    length = math.lcm(*(share.denominator for share in shares.values()))
    if length <= LONGEST_CYCLE:
        return {name: int(share * length) for name, share in shares.items()}
    # Largest remainders; but what has a weight keeps a block.
    counts = {name: max(int(share * LONGEST_CYCLE), share > 0) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name] * LONGEST_CYCLE)
    for name in by_remainder[: max(0, LONGEST_CYCLE - sum(counts.values()))]:
        counts[name] += 1
    return {name: int(count) for name, count in counts.items()}


def laid_out(counts: Sequence[int]) -> numpy.ndarray[Any, Any]:
    """The source of each block of a cycle that has so many blocks of each; uint16, shape (sum of counts,)."""
    import numpy

    length, present = sum(counts), [source for source, count in enumerate(counts) if count]
    order = numpy.full(length, present[0], dtype="uint16")
    if len(present) == 1:
        return order
    parts = 2 * len(present) - 2
    taken = dict.fromkeys(present, 0)
    for position in range(length):
        chosen, fewest = -1, math.inf
        for source in present:
            # How far the source is behind its share once this block is taken, in units of 1 / (length * parts) blocks.
            behind = ((position + 1) * counts[source] - taken[source] * length) * parts
            if behind < length:  # not yet due
                continue
            left = max(0, -(-(length * (parts - 1) - behind) // (counts[source] * parts)))
            if left < fewest:  # the earliest deadline first
                chosen, fewest = source, left
        order[position] = chosen
        taken[chosen] += 1
    return order


@dataclass(frozen=True)
class StageOrder:
    """The order of blocks in a stage: a cycle, repeated."""

    blocks: int
    counts: tuple[int, ...]
    """Blocks of each source in a cycle."""
    order: numpy.ndarray[Any, Any]
    """The source of each block of the cycle, shape (cycle,)."""
    ranks: numpy.ndarray[Any, Any]
    """How many blocks of the same source come before it in the cycle, shape (cycle,)."""

    @classmethod
    def of(cls, blocks: int, counts: Sequence[int]) -> StageOrder:
        """A stage of so many blocks, with so many of each source in a cycle."""
        import numpy

        order = laid_out(counts)
        ranks = numpy.empty(len(order), dtype="int64")
        for source, count in enumerate(counts):
            ranks[order == source] = numpy.arange(count)
        return cls(blocks, tuple(counts), order, ranks)

    def taken(self, blocks: int) -> list[int]:
        """Blocks of each source among the first ones of the stage."""
        import numpy

        cycles, rest = divmod(blocks, len(self.order))
        begun = numpy.bincount(self.order[:rest], minlength=len(self.counts)).tolist()
        return [cycles * count + more for count, more in zip(self.counts, begun, strict=True)]


class Interleaving:
    """The order of blocks in a run, stage after stage."""

    def __init__(self, stages: Sequence[StageOrder]) -> None:
        self.stages = [stage for stage in stages if stage.blocks]
        self._starts = [0, *accumulate(stage.blocks for stage in self.stages)]
        self._before = [[0] * len(stages[0].counts)]
        for stage in self.stages:
            taken = stage.taken(stage.blocks)
            self._before.append([sum(pair) for pair in zip(self._before[-1], taken, strict=True)])

    def __len__(self) -> int:
        return self._starts[-1]

    def at(self, position: int) -> tuple[int, int]:
        """The source of the block at this position, and how many of that source come before it."""
        stage, number = self._stage_at(position)
        cycles, place = divmod(position - self._starts[number], len(stage.order))
        source = int(stage.order[place])
        return source, self._before[number][source] + cycles * stage.counts[source] + int(stage.ranks[place])

    def taken(self, position: int) -> list[int]:
        """Blocks of each source before this position."""
        stage, number = self._stage_at(min(position, len(self) - 1))
        within = stage.taken(position - self._starts[number])
        return [sum(pair) for pair in zip(self._before[number], within, strict=True)]

    def _stage_at(self, position: int) -> tuple[StageOrder, int]:
        if not 0 <= position < len(self):
            raise IndexError(position)
        number = bisect_right(self._starts, position) - 1
        return self.stages[number], number


def shuffled(index: int, length: int, key: str) -> int:
    """Where a shuffle of `range(length)` puts this index: a permutation that is computed, and never stored.

    A Feistel network over a rectangle of at least `length` cells; a result outside the range is permuted again.
    """
    rows = math.isqrt(length - 1) + 1
    columns = -(-length // rows)
    digest = blake2b(key.encode(), digest_size=32).digest()
    while True:
        row, column = divmod(index, columns)
        for turn in range(ROUNDS // 2):
            row = (row + _drawn(digest, 2 * turn, column)) % rows
            column = (column + _drawn(digest, 2 * turn + 1, row)) % columns
        index = row * columns + column
        if index < length:
            return index


def shuffled_within(index: int, length: int, window: int, key: str) -> int:
    """Where a shuffle of `range(length)` puts this index that moves nothing out of its window of so many.

    The first window is known before the second is there.
    """
    number, at = divmod(index, window)
    first = number * window
    return first + shuffled(at, min(window, length - first), f"{key} {number}")


def _drawn(key: bytes, turn: int, value: int) -> int:
    return int.from_bytes(blake2b(value.to_bytes(8), key=key, salt=bytes([turn]), digest_size=8).digest())
