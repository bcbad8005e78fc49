"""A recipe with other memory strategies: which there are, which go together, and what a run takes with them.

Knows no strategy by name. A plugin's `candidates` says what may be tried, its claims say which exclude each other, and
`resolve` decides whether a recipe with them is valid.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import cast

from toolkit.api import Candidates, Fidelity, Strategy
from toolkit.errors import PluginError, RecipeError
from toolkit.planning import fake_step
from toolkit.planning.own_process import started_beside
from toolkit.planning.plan import Plan, make_plan, reckon, several
from toolkit.planning.roofline import Rates
from toolkit.planning.trace import Trace
from toolkit.planning.words import named
from toolkit.recipe.auto import Auto
from toolkit.recipe.batch import BatchSplit
from toolkit.recipe.resolve import ResolvedRecipe, resolve
from toolkit.recipe.schema import Recipe, StrategyComponent
from toolkit.system.threads import processors

FIDELITIES: tuple[Fidelity, ...] = ("exact", "approximate", "different")

Set = frozenset[StrategyComponent]


@dataclass(frozen=True)
class Option:
    """A valid set of strategies on top of the recipe's own, and the plan of the run with them."""

    added: tuple[StrategyComponent, ...]
    resolved: ResolvedRecipe
    plan: Plan


def without_choosers(recipe: Recipe) -> Recipe:
    """The recipe without the placeholder `auto`."""
    return replace(recipe, memory=tuple(part for part in recipe.memory if not isinstance(part.plugin, Auto)))


def with_added(recipe: Recipe, added: Iterable[StrategyComponent]) -> Recipe:
    """The recipe with more strategies at the end of its list."""
    first = max((int(part.path[1]) for part in recipe.memory), default=-1) + 1
    placed = (replace(part, path=("memory", first + n)) for n, part in enumerate(added))
    return replace(recipe, memory=(*recipe.memory, *placed))


def candidates(resolved: ResolvedRecipe) -> list[StrategyComponent]:
    """What the plugins offer for this recipe and device, each valid with the recipe's own strategies."""
    recipe = without_choosers(resolved.recipe)
    registry = recipe.registry
    present = {part.name for part in recipe.memory}
    found: list[StrategyComponent] = []
    for name in registry.names("memory"):
        if name in present:
            continue
        try:
            plugin = cast(object, registry.load("memory", name))
        except PluginError as error:
            logging.getLogger("toolkit").debug("not among what can be chosen: %s", error)
            continue
        if not isinstance(plugin, Candidates):
            continue
        for variant in plugin.candidates(recipe.training, resolved.device):
            part = StrategyComponent(name, cast(Strategy, variant), registry.offer("memory", name).distribution)
            if is_valid(with_added(recipe, [part]), resolved):
                found.append(part)
    return found


def is_valid(recipe: Recipe, like: ResolvedRecipe) -> bool:
    """Whether a recipe can run on the device of `like`."""
    try:
        resolve(recipe, like.device)
    except RecipeError:
        return False
    return True


def cuts_the_batch_alone(part: StrategyComponent, resolved: ResolvedRecipe) -> bool:
    """Whether all that a strategy does is set the micro-batch size."""
    strategy = part.plugin
    changes = strategy.changes(resolved.recipe.training, resolved.device)
    return changes.keys() == {"micro_batch_size"} and type(strategy).apply is Strategy.apply


def shards_the_state(part: StrategyComponent, resolved: ResolvedRecipe) -> bool:
    """Whether a strategy gives each process a shard of what it would else hold whole."""
    return "shard" in part.plugin.changes(resolved.recipe.training, resolved.device)


class Planner:
    """Plans sets of strategies with as few traces as possible.

    For one set, every micro-batch size lies on a line through two traced ones; see `Trace.at_micro_batch`.
    """

    def __init__(self, resolved: ResolvedRecipe, *, rates: Rates, limit_bytes: int, processes: int = 1) -> None:
        self.resolved = resolved
        self.rates = rates
        self.limit_bytes = limit_bytes
        self.processes = processes
        self._traces: dict[tuple[Set, int], Trace] = {}
        self._interpolated: set[tuple[Set, int]] = set()
        self._begun: dict[tuple[Set, int], Callable[[], Trace]] = {}
        """What waits for the traces that were begun ahead."""

    def option(self, added: Set, batch: StrategyComponent | None = None) -> Option | None:
        """The plan with these strategies and this micro-batch size; None if they do not go together.

        Raises:
            RecipeError, PluginError: the recipe is refused even without any of them.
        """
        parts = tuple(sorted(added, key=lambda part: part.name)) + ((batch,) if batch else ())
        try:
            resolved, sizes = self._with(parts)
        except RecipeError:
            if not parts:
                raise
            return None
        try:
            traced = self._traced(added, resolved, sizes)
        except (RecipeError, PluginError) as error:
            if not added:
                raise
            logging.getLogger("toolkit").debug("%s cannot be chosen: %s", ", ".join(named(parts)), error)
            return None
        made = reckon(resolved, traced, sizes, rates=self.rates, limit_bytes=self.limit_bytes)
        return Option(parts, resolved, made)

    def trace_ahead(self, sets: Iterable[Set]) -> None:
        """Begin to trace steps with these strategies beside what is asked for next, one per further processor."""
        for added in itertools.islice(sets, processors() - 1):
            with contextlib.suppress(RecipeError):  # `option` says what that means
                resolved, sizes = self._with(tuple(added))
                size, accumulation = sizes.micro_batch_size, sizes.accumulation
                begun = started_beside(
                    fake_step.trace,
                    resolved,
                    micro_batch_size=size,
                    accumulation=accumulation,
                    **several(self.processes, self.rates.per_host),
                )
                if begun:
                    self._begun[added, size] = begun

    def _with(self, parts: tuple[StrategyComponent, ...]) -> tuple[ResolvedRecipe, BatchSplit]:
        """The recipe with these strategies in place of its choosers.

        Raises:
            RecipeError: they do not go together.
        """
        recipe = with_added(without_choosers(self.resolved.recipe), parts)
        resolved = resolve(recipe, self.resolved.device)
        if resolved.training.save_in_background is None:
            # Whether there is room for a copy of the state is decided once the strategies are chosen.
            resolved = replace(resolved, training=resolved.training.model_copy(update={"save_in_background": False}))
        return resolved, BatchSplit.of(resolved, processes=self.processes)

    def is_valid(self, added: Set) -> bool:
        """Whether these strategies go together and with the recipe."""
        return is_valid(with_added(without_choosers(self.resolved.recipe), added), self.resolved)

    def chosen(self, option: Option, resolved: ResolvedRecipe, *, limit_bytes: int) -> Plan:
        """The plan of the recipe that an option has become, from the option's own trace where there is one.

        Args:
            option: one that this planner made.
            resolved: the recipe with its strategies; only how saves are made may differ.
            limit_bytes: what the plan may take.
        """
        batches = [part for part in option.added if cuts_the_batch_alone(part, option.resolved)]
        sizes = BatchSplit.of(resolved, processes=self.processes)
        key = frozenset(option.added).difference(batches), sizes.micro_batch_size
        if key not in self._traces or key in self._interpolated:
            return make_plan(resolved, rates=self.rates, limit_bytes=limit_bytes, processes=self.processes)
        return reckon(resolved, self._traces[key], sizes, rates=self.rates, limit_bytes=limit_bytes)

    def _traced(self, added: Set, resolved: ResolvedRecipe, sizes: BatchSplit) -> Trace:
        size = sizes.micro_batch_size
        key = added, size
        if key in self._traces:
            return self._traces[key]
        known = [found for (of, _), found in self._traces.items() if of == added and found.lies_on_a_line]
        if len(known) > 1 and sizes.accumulation > 1 and (between := known[0].at_micro_batch(size, other=known[1])):
            self._interpolated.add(key)
            found = between
        elif begun := self._begun.pop(key, None):
            found = begun()
        else:
            found = fake_step.trace(
                resolved,
                micro_batch_size=size,
                accumulation=sizes.accumulation,
                **several(self.processes, self.rates.per_host),
            )
        self._traces[key] = found
        return found
