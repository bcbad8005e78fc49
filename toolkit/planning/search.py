"""Searches for the best set of memory strategies: exact before approximate before different, and then the fastest.

It starts from everything that saves memory, and drops what costs time for as long as the rest still fits; so it plans
a few sets rather than all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from toolkit import formatting
from toolkit.api import Fidelity, Progress
from toolkit.planning.roofline import Rates
from toolkit.planning.variants import (
    FIDELITIES,
    Option,
    Planner,
    Set,
    candidates,
    cuts_the_batch_alone,
    shards_the_state,
)
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.recipe.schema import StrategyComponent

MIN_SPEEDUP = 0.05
"""Where no strategy is needed, one has to make the step faster by this."""
RECOMPUTED = "activations"
"""The claim of what keeps fewer activations: it computes them again, so it is never taken for its speed."""
SAME_SPEED_TOLERANCE = 0.01
"""Steps whose times differ by less than this are equally fast, and the one with fewer strategies is taken."""


def choose(options: Iterable[Option], *, limit_bytes: int, fidelity: Fidelity = "different") -> Option | None:
    """The best option within the limit, or None: the highest fidelity, then the fastest, then the simplest."""
    fitting = [
        option
        for option in options
        if option.plan.peak_bytes <= limit_bytes
        and FIDELITIES.index(option.plan.fidelity) <= FIDELITIES.index(fidelity)
    ]
    if not fitting:
        return None
    highest = min(FIDELITIES.index(option.plan.fidelity) for option in fitting)
    fitting = [option for option in fitting if FIDELITIES.index(option.plan.fidelity) == highest]
    fastest = min(option.plan.seconds_per_step for option in fitting)
    equals = [option for option in fitting if option.plan.seconds_per_step <= fastest * (1 + SAME_SPEED_TOLERANCE)]
    return min(equals, key=lambda option: (len(option.added), option.plan.peak_bytes))


class Search:
    """A search for the best set of strategies for one recipe."""

    def __init__(
        self,
        resolved: ResolvedRecipe,
        *,
        rates: Rates,
        limit_bytes: int,
        processes: int = 1,
        progress: Progress | None = None,
        seconds: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the search up; it starts with `best`.

        Args:
            resolved: the recipe, whose own strategies stay.
            rates: those of its device.
            limit_bytes: what a plan may take.
            processes: how many devices share a step.
            progress: called for each set of strategies that is planned.
            seconds: how long `best` may search, where the recipe as it is does not fit.
            clock: what the seconds are measured with.
        """
        self.limit_bytes = limit_bytes
        self.seconds = seconds
        self.cut_short = False
        """Whether time ran out before everything of interest was planned."""
        self._progress = progress
        self._phase = "planning memory"
        self._clock = clock
        self._until = math.inf
        self._options: dict[tuple[Set, StrategyComponent | None], Option | None] = {}
        self.planner = Planner(resolved, rates=rates, limit_bytes=limit_bytes, processes=processes)
        offered = [part for part in candidates(resolved) if processes > 1 or not shards_the_state(part, resolved)]
        self.batches = [part for part in offered if cuts_the_batch_alone(part, resolved)]
        self.others = [part for part in offered if part not in self.batches]
        self.seen: dict[tuple[str, ...], Option] = {}
        """Every valid option planned so far, by its strategies in words."""

    def best(self, *, fidelity: Fidelity) -> Option | None:
        """The best option that fits, with strategies of at least this fidelity; None if there is none."""
        self.planner.trace_ahead(map(_alone, self._taken_for_speed()))
        whole = self.planned(frozenset(), None)
        if whole and whole.plan.peak_bytes <= self.limit_bytes:
            return self._if_worth_it(whole)  # the usual case: nothing is needed
        self._until = self._clock() + self.seconds
        if whole:
            needed, room = formatting.size(whole.plan.peak_bytes), formatting.size(self.limit_bytes)
            at_most = f", for {formatting.duration(self.seconds)} at most" if self.seconds < math.inf else ""
            self._phase = f"{needed} needed, {room} usable: looking for strategies that fit{at_most}"
        cut = self._best_batch(frozenset())
        for lowest in FIDELITIES[: FIDELITIES.index(fidelity) + 1]:
            usable = [part for part in self.others if rank(part) <= FIDELITIES.index(lowest)]
            found = self._let_go(usable) if any(rank(part) == FIDELITIES.index(lowest) for part in usable) else None
            if best := choose(filter(None, [cut, found]), limit_bytes=self.limit_bytes):
                return best
        return None

    def smallest(self) -> Option:
        """The option with the lowest peak among those planned."""
        return min(self.seen.values(), key=lambda option: option.plan.peak_bytes)

    def _if_worth_it(self, whole: Option) -> Option:
        """An exact strategy that is faster than none, though none is needed: chunked-loss on a CPU, say."""
        alone = [self.planned(_alone(part), None) for part in self._taken_for_speed()]
        faster = [
            option
            for option in filter(None, alone)
            if option.plan.peak_bytes <= self.limit_bytes
            and option.plan.seconds_per_step * (1 + MIN_SPEEDUP) < whole.plan.seconds_per_step
        ]
        return min(faster, key=lambda option: option.plan.seconds_per_step, default=whole)

    def _taken_for_speed(self) -> list[StrategyComponent]:
        resolved = self.planner.resolved
        return [
            part
            for part in self.others
            if rank(part) == 0 and RECOMPUTED not in part.plugin.claims and not shards_the_state(part, resolved)
        ]

    def _let_go(self, usable: Sequence[StrategyComponent]) -> Option | None:
        """The best option with the smallest micro-batch; or with the whole batch, for strategies that need it."""
        for batch in (*self.batches[:1], None):
            parts, everything = usable, self.everything(usable, batch)
            if self.planned(everything, batch) is None:  # one of them does not go with this model
                parts = self.accepted(usable, batch)
                everything = self.everything(parts, batch)
            if found := self._let_go_from(everything, parts, batch):
                return found
        return None

    def _let_go_from(
        self, everything: Set, usable: Sequence[StrategyComponent], batch: StrategyComponent | None
    ) -> Option | None:
        """Starting from everything together, drop or exchange one strategy at a time while that is faster and fits.

        The micro-batch size stays fixed meanwhile and is raised at the end: it matters less than what is recomputed.
        It matters most in steps dominated by kernel launches, where everything together with the largest micro-batch
        may be fastest; so that is compared too.
        """
        current = everything
        best = self.planned(current, batch)
        if best is None or best.plan.peak_bytes > self.limit_bytes:
            return None
        seen = {current}
        while tried := {
            near: self.planned(near, batch) for near in self._neighbours(current, usable) if near not in seen
        }:
            seen |= tried.keys()
            better = choose([best, *filter(None, tried.values())], limit_bytes=self.limit_bytes)
            if better is None or better is best:
                break
            best = better
            current = next(near for near, option in tried.items() if option is better)
        ends = [best, self._best_batch(current), self._best_batch(everything)]
        return choose(filter(None, ends), limit_bytes=self.limit_bytes)

    def accepted(self, parts: Sequence[StrategyComponent], batch: StrategyComponent | None) -> list[StrategyComponent]:
        """Those of the strategies that go with this model."""
        return [part for part in parts if self.planned(frozenset({part}), batch)]

    def everything(self, usable: Sequence[StrategyComponent], batch: StrategyComponent | None) -> Set:
        """As many strategies as go together; of those that exclude each other, the last one listed."""
        together: Set = frozenset()
        for part in reversed(usable):
            together = self.joined(together, part, batch)
        return together

    def joined(self, together: Set, part: StrategyComponent, batch: StrategyComponent | None) -> Set:
        """The set with one more strategy, if it goes with the others and this micro-batch size."""
        with_cut = together | {part} | ({batch} if batch else set())
        if any(_exclude(part, other) for other in together) or not self.planner.is_valid(with_cut):
            return together
        return together | {part}

    def _neighbours(self, current: Set, usable: Sequence[StrategyComponent]) -> Iterator[Set]:
        for part in current:
            yield current - {part}
            for other in usable:
                if other not in current and _exclude(part, other):
                    yield (current - {part}) | {other}

    def _best_batch(self, added: Set) -> Option | None:
        """The fastest micro-batch size with which these strategies fit."""
        fitting = []
        for batch in (*self.batches, None):  # from the smallest to the whole batch: each takes less than the next
            option = self.planned(added, batch)
            if option and option.plan.peak_bytes > self.limit_bytes:
                break
            fitting.append(option)
        return choose(filter(None, fitting), limit_bytes=self.limit_bytes)

    @property
    def tried(self) -> int:
        """How many sets of strategies were planned or refused."""
        return len(self._options)

    def planned(self, added: Set, batch: StrategyComponent | None) -> Option | None:
        """The plan with these strategies; None if they do not go together, or time has run out."""
        key = added, batch
        if key not in self._options:
            if self._clock() >= self._until:
                self.cut_short = True
                return None
            if self._progress:
                self._progress(self._phase, self.tried, unit="tried")
            option = self._options[key] = self.planner.option(added, batch)
            if option:
                self.seen[option.plan.strategies] = option
        return self._options[key]


def rank(part: StrategyComponent) -> int:
    """The rank of a strategy's fidelity, 0 for exact."""
    return FIDELITIES.index(part.plugin.fidelity)


def _alone(part: StrategyComponent) -> Set:
    return frozenset({part})


def _exclude(one: StrategyComponent, other: StrategyComponent) -> bool:
    """Whether two strategies manage the same thing."""
    return one.name == other.name or bool(one.plugin.claims & other.plugin.claims)
