"""What a run takes of each source of a mixture, stage by stage; made before the run, without a document being read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from toolkit import formatting
from toolkit.data.interleaving import StageOrder, cycle_of
from toolkit.recipe.mix import WORTHWHILE_PASSES, Mix

LARGEST_SHIFT = 0.01
"""Of the run, by which the end of a stage may move to that of a cycle, where every source has exactly its share."""


@dataclass(frozen=True)
class StagePlan:
    """What a stage takes of each source."""

    first_block: int
    """Its first position in the run."""
    blocks: int
    shares: Mapping[str, float]
    """By source; they add up to 1."""
    blocks_of: Mapping[str, int]
    """Blocks of each source in this stage."""


@dataclass(frozen=True)
class MixturePlan:
    """What a run takes of each source, stage by stage."""

    block_size: int
    stages: tuple[StagePlan, ...]
    available: Mapping[str, int] | None
    """Training blocks of each source; None if they have not been counted."""
    passes_allowed: Mapping[str, float]

    @property
    def blocks(self) -> Mapping[str, int]:
        """Blocks of each source in the whole run."""
        return {name: sum(stage.blocks_of[name] for stage in self.stages) for name in self.passes_allowed}

    @property
    def passes(self) -> Mapping[str, float] | None:
        """Passes over each source; None if its blocks have not been counted."""
        if self.available is None:
            return None
        return {name: blocks / self.available[name] for name, blocks in self.blocks.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain data, in tokens: the plan of each stage, and of each source."""
        passes = self.passes
        return {
            "stages": [
                {
                    "first_block": stage.first_block,
                    "tokens": stage.blocks * self.block_size,
                    "shares": dict(stage.shares),
                    "sources": {name: blocks * self.block_size for name, blocks in stage.blocks_of.items()},
                }
                for stage in self.stages
            ],
            "sources": {
                name: {"tokens": blocks * self.block_size, "passes": passes and passes[name]}
                for name, blocks in self.blocks.items()
            },
        }

    def rows(self) -> list[list[str]]:
        """A table of the plan: for each source and stage, and each source in the whole run, share, tokens, passes."""
        whole = StagePlan(0, sum(stage.blocks for stage in self.stages), {}, self.blocks)
        parts = [(str(number), stage) for number, stage in enumerate(self.stages, start=1)]
        rows = []
        for name in self.passes_allowed:
            for title, part in [*(parts if len(parts) > 1 else ()), ("all", whole)]:
                blocks = part.blocks_of[name]
                share = part.shares.get(name, blocks / whole.blocks)
                passes = formatting.compact(blocks / self.available[name]) if self.available else "unknown"
                rows.append([name, title, f"{share:.1%}", f"{blocks * self.block_size:,}", passes])
        return rows

    def words(self) -> list[str]:
        """The plan in lines, a source each: its shares, stage by stage, its tokens, and how often it is repeated."""
        whole, lines = sum(stage.blocks for stage in self.stages), []
        for name, blocks in self.blocks.items():
            shares = ", then ".join(f"{stage.shares[name]:.1%}" for stage in self.stages)
            line = f"{name}: {shares}"
            if len(self.stages) > 1:
                each = " + ".join(f"{stage.blocks_of[name] * self.block_size:,}" for stage in self.stages)
                line += f", in all {blocks / whole:.1%}; {each} ="
            line += f" {blocks * self.block_size:,} tokens"
            if self.available:
                there = self.available[name] * self.block_size
                line += f", {formatting.compact(blocks / self.available[name])} passes over {there:,}"
            lines.append(line)
        return lines

    def worn(self) -> Iterator[str]:
        """A caution for each source that is repeated more often than is known to teach anything."""
        for name, passes in (self.passes or {}).items():
            if WORTHWHILE_PASSES < passes <= self.passes_allowed[name]:
                yield (
                    f"{name} is repeated {formatting.compact(passes)} times; beyond {WORTHWHILE_PASSES:.0f}, each pass "
                    f"teaches less than new text would (arXiv:2305.16264)"
                )

    def too_small(self, *, steps: int) -> dict[str, str]:
        """What is wrong, and what to do, for each source that a run of so many steps repeats more than is allowed."""
        refused = {}
        for name, passes in (self.passes or {}).items():
            allowed = self.passes_allowed[name]
            if passes <= allowed or self.available is None:
                continue
            needed, there = self.blocks[name] * self.block_size, self.available[name] * self.block_size
            fits = f"a run of {shorter:,} steps" if (shorter := int(steps * allowed / passes)) else "a shorter run"
            share, enough = _rounded_down(allowed / passes), _rounded_up(passes)
            refused[name] = (
                f"{name} is too small: its share of the run is {needed:,} tokens, {formatting.compact(passes)} passes "
                f"over the {there:,} that it has, and max_passes is {allowed:g}; give it {share} times the share or "
                f"less, more text, or {fits}, or set max_passes: {enough} if it may be repeated so often"
            )
        return refused


def _rounded_down(share: float) -> str:
    """A number that is not larger, with two digits that count."""
    unit = 10.0 ** (math.floor(math.log10(share)) - 1)
    return f"{math.floor(share / unit + 1e-9) * unit:.2g}"


def _rounded_up(passes: float) -> str:
    """A number that is not smaller, with one digit after the point where that matters."""
    return f"{math.ceil(passes)}" if passes >= 10 else f"{math.ceil(10 * passes - 1e-9) / 10:g}"


def planned(mix: Mix, *, blocks: int, block_size: int, available: Mapping[str, int] | None) -> MixturePlan:
    """The plan of a run of so many blocks; `available` are the training blocks of each source."""
    stages, first = [], 0
    for weights, order in zip(mix.weights(), stage_orders(mix, blocks), strict=True):
        taken = dict(zip(weights, order.taken(order.blocks), strict=True))
        cycle = len(order.order)
        shares = {name: count / cycle for name, count in zip(weights, order.counts, strict=True)}
        stages.append(StagePlan(first, order.blocks, shares, taken))
        first += order.blocks
    return MixturePlan(block_size, tuple(stages), available, mix.passes_allowed())


def stage_orders(mix: Mix, blocks: int) -> list[StageOrder]:
    """The order within each stage of a run of so many blocks.

    A stage ends with a cycle where one ends close to where the recipe puts it: then every source has had exactly its
    share, and the shares of the run are as exact as those of the stage.
    """
    orders, start = [], 0
    for weights, share in zip(mix.weights(), mix.ends(), strict=True):
        counts = cycle_of(weights)
        cycle, wanted = sum(counts.values()), round(share * blocks)
        whole = start + round((wanted - start) / cycle) * cycle
        end = whole if share < 1 and abs(whole - wanted) <= LARGEST_SHIFT * blocks else wanted
        end = max(start, min(end, blocks))
        orders.append(StageOrder.of(end - start, list(counts.values())))
        start = end
    return orders
