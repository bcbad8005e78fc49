"""The rows of a comparison to choose from: the recipe as it is, each strategy alone, and the sets that make sense.

For each fidelity, from exact to different, these are: everything of the higher fidelities plus each strategy of this
one, and everything down to this one. A table of every pair would be too long to read.
"""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.planning.search import Search, rank
from toolkit.planning.variants import FIDELITIES, Option, Set
from toolkit.recipe.schema import StrategyComponent


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
