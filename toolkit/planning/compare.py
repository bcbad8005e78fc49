"""The rows of a comparison to choose from: the recipe as it is, each strategy alone, and the sets that make sense.

For each fidelity, from exact to different, these are: everything of the higher fidelities plus each strategy of this
one, and everything down to this one. A table of every pair would be too long to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from toolkit.api import Progress
from toolkit.api.context import nobody_watches
from toolkit.planning.choose import not_all_was_tried, too_small, usable_bytes
from toolkit.planning.overhead import framework_bytes
from toolkit.planning.own_process import in_own_process
from toolkit.planning.roofline import Rates
from toolkit.planning.search import Search, rank
from toolkit.planning.variants import FIDELITIES, Option, Set
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.recipe.schema import StrategyComponent


@dataclass(frozen=True)
class Alternatives:
    """The recipe with other strategies."""

    rows: tuple[Option, ...]
    best: Option | None
    """The best that fits, if it was asked for and there is one."""
    too_small: str
    """What to say if nothing fits."""
    not_all_was_tried: str
    """What to say if time ran out; else empty."""


def alternatives(
    resolved: ResolvedRecipe,
    limit: int,
    *,
    rates: Rates,
    processes: int = 1,
    seconds: float,
    compare: bool,
    best: bool,
    progress: Progress | None = None,
) -> Alternatives:
    """Plan the recipe with other strategies.

    Args:
        resolved: the recipe, whose own strategies stay.
        limit: bytes that each process may use.
        rates: those of the recipe's device.
        processes: how many devices share a step.
        seconds: how long the search for the best may take.
        compare: whether the rows are wanted.
        best: whether the best that fits is wanted.
        progress: receives the progress of the search.
    """
    framework_bytes(resolved.device)  # measured in this process, before anything else adds to its memory
    asked = {"rates": rates, "processes": processes, "seconds": seconds, "compare": compare, "best": best}
    return in_own_process(_alternatives, resolved, limit, **asked, progress=progress or nobody_watches)


def _alternatives(
    resolved: ResolvedRecipe,
    limit: int,
    *,
    rates: Rates,
    processes: int,
    seconds: float,
    compare: bool,
    best: bool,
    progress: Progress,
) -> Alternatives:
    usable = usable_bytes(limit, resolved.device)
    search = Search(resolved, rates=rates, limit_bytes=usable, processes=processes, progress=progress, seconds=seconds)
    found = search.best(fidelity="different") if best else None
    return Alternatives(
        rows=tuple(rows(search)) if compare else (),
        best=found,
        too_small=too_small(search, limit, "different") if best and found is None else "",
        not_all_was_tried=not_all_was_tried(search) if search.cut_short else "",
    )


def rows(search: Search) -> Iterator[Option]:
    """The options to show, in order; the first is the recipe with no added strategies."""
    smallest = search.batches[0] if search.batches else None
    shown: set[tuple[str, ...]] = set()
    for added, batch in _sets(search, smallest):
        option = search.planned(added, batch)
        if option and option.plan.strategies not in shown:
            shown.add(option.plan.strategies)
            yield option


def _sets(search: Search, smallest: StrategyComponent | None) -> Iterator[tuple[Set, StrategyComponent | None]]:
    yield frozenset(), None
    for batch in reversed(search.batches):
        yield frozenset(), batch
    others = search.accepted(search.others, None)
    for part in others:
        yield frozenset({part}), None
    for lowest in range(len(FIDELITIES)):
        before = search.everything([part for part in others if rank(part) < lowest], smallest)
        of_this = [part for part in others if rank(part) == lowest]
        if lowest:
            yield from ((search.joined(before, part, smallest), smallest) for part in of_this)
        if of_this:
            together = search.everything([part for part in others if rank(part) <= lowest], smallest)
            yield together, None
            yield together, smallest
