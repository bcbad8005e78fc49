"""Replaces `auto` with concrete memory strategies, and says why these.

What `search` finds becomes part of the recipe; a run records it, and uses it again on resume.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from toolkit import formatting
from toolkit.api import Change, Device, Fidelity, Progress
from toolkit.api.context import nobody_watches
from toolkit.formatting import counted
from toolkit.memory.budget import is_ample, own_share
from toolkit.planning.overhead import framework_bytes
from toolkit.planning.own_process import in_own_process
from toolkit.planning.plan import Plan
from toolkit.planning.roofline import Rates, measured
from toolkit.planning.search import SAME_SPEED_TOLERANCE, Search
from toolkit.planning.variants import FIDELITIES, Option, with_added, without_choosers
from toolkit.planning.words import listed, named
from toolkit.recipe.auto import Auto
from toolkit.recipe.document import Path_
from toolkit.recipe.resolve import ResolvedRecipe, resolve
from toolkit.recipe.schema import component
from toolkit.recipe.strategies import StrategyChange

SPARE_SHARE = {"cpu": 0.03, "cuda": 0.08, "mps": 0.25}
"""Share of the limit that a choice leaves free: on a CPU, what runs have used beyond their plans (tests/
benchmarks/planned_memory.py); on CUDA, for fragmentation; on a Mac, for the programs that share its memory."""


NOTHING_CHOSEN: Mapping[str, Any] = {"strategies": [], "save_in_background": None}
"""The record of a choice of no strategies."""


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why."""

    record: Mapping[str, Any]
    """What a run records of it, to use again on resume: the strategies as in a recipe, with plugin and options, and
    whether there is room for a copy of the state, to save in the background; None leaves that to the run."""
    plan: Plan
    why: tuple[str, ...]
    """Sentences for the user."""


def chooser_of(resolved: ResolvedRecipe) -> Auto | None:
    """The recipe's placeholder strategy (`auto`), if it has one."""
    found = (part.plugin for part in resolved.recipe.memory if isinstance(part.plugin, Auto))
    return next(found, None)


def resolve_auto(
    resolved: ResolvedRecipe,
    budget: int | None = None,
    *,
    rates: Rates | None = None,
    processes: int = 1,
    progress: Progress | None = None,
    seconds: float = math.inf,
) -> tuple[ResolvedRecipe, Choice]:
    """Replace the recipe's chooser with concrete strategies, and say why these.

    Args:
        resolved: a recipe with a chooser among its memory strategies.
        budget: bytes that each process may use, in place of the chooser's limit.
        rates: those of the recipe's device; measured here, if not given.
        processes: how many devices share a step.
        progress: receives the progress of the search.
        seconds: how long the search may take.

    Raises:
        RecipeError: nothing that may be chosen fits.
    """
    chooser = chooser_of(resolved)
    assert chooser is not None
    limit = budget or own_share(chooser.limit(resolved.device), resolved.device, processes)
    rates = rates or measured(resolved.device)
    framework_bytes(resolved.device)  # measured in this process, before anything else adds to its memory
    choice = in_own_process(
        _choice, resolved, limit, rates=rates, processes=processes, seconds=seconds, progress=progress or nobody_watches
    )
    return with_choice(resolved, choice.record), choice


def _choice(
    resolved: ResolvedRecipe, limit: int, *, rates: Rates, processes: int, seconds: float, progress: Progress
) -> Choice:
    chooser = chooser_of(resolved)
    assert chooser is not None
    usable = usable_bytes(limit, resolved.device)
    search = Search(resolved, rates=rates, limit_bytes=usable, processes=processes, progress=progress, seconds=seconds)
    found = search.best(fidelity=chooser.fidelity)
    if found is None:
        raise resolved.recipe.error(too_small(search, limit, chooser.fidelity), _place(resolved))
    peak, with_copy = found.plan.peak_bytes, found.plan.peak_bytes + found.plan.state_bytes
    # Returning memory to the system at every step costs more time than waiting for a save.
    has_room = with_copy <= usable and is_ample(with_copy, limit) >= is_ample(peak, limit)
    record = {
        "strategies": [{"plugin": part.name, **part.plugin.model_dump(mode="json")} for part in found.added],
        "save_in_background": has_room if resolved.device.kind == "cpu" else None,
    }
    made = search.planner.chosen(found, with_choice(resolved, record), limit_bytes=limit)
    return Choice(record, made, tuple(_why(found, made, search)))


def with_choice(resolved: ResolvedRecipe, record: Mapping[str, Any]) -> ResolvedRecipe:
    """The recipe with strategies that were chosen earlier, just now or by the run that is being resumed.

    Args:
        resolved: a recipe with a chooser among its memory strategies.
        record: the `record` of a `Choice`.
    """
    recipe = resolved.recipe
    parts = []
    for entry in record["strategies"]:
        options = {name: value for name, value in entry.items() if name != "plugin"}
        parts.append(component(recipe.registry, "memory", entry["plugin"], options))
    chosen = resolve(with_added(without_choosers(recipe), parts), resolved.device)
    in_background = record["save_in_background"]
    if in_background is None or chosen.training.save_in_background is not None:
        return chosen
    change = Change(in_background, f"a copy of the state has {'' if in_background else 'no '}room beside the step")
    return replace(
        chosen,
        training=chosen.training.model_copy(update={"save_in_background": in_background}),
        changes=(*chosen.changes, StrategyChange("auto", _place(resolved), "save_in_background", change)),
    )


def usable_bytes(limit: int, device: Device) -> int:
    """The bytes of a limit that a plan may use."""
    return int(limit * (1 - SPARE_SHARE[device.kind]))


def too_small(search: Search, limit: int, fidelity: Fidelity) -> str:
    """For when nothing fits: say what would be needed, and which model size would fit."""
    least = search.smallest().plan
    chosen_from = "was tried" if search.cut_short else "may be chosen"
    words = [
        f"nothing that {chosen_from} fits into {formatting.size(limit)}: the smallest peak is "
        f"{formatting.size(least.peak_bytes)}, with {listed(least.strategies)}, and "
        f"{formatting.size(limit - search.limit_bytes)} have to stay free"
    ]
    framework = least.parts["framework"]
    if search.limit_bytes > framework:
        share = (search.limit_bytes - framework) / (least.peak_bytes - framework)
        words.append(
            f"a model of about {formatting.compact(least.parameters * share)} parameters would fit in this way"
        )
    else:
        words.append(f"the libraries alone take {formatting.size(framework)}")
    if search.cut_short:
        words.append(not_all_was_tried(search))
    if fidelity != FIDELITIES[-1]:
        words.append(f"fidelity: {FIDELITIES[FIDELITIES.index(fidelity) + 1]} allows more")
    return "; ".join(words)


def not_all_was_tried(search: Search) -> str:
    """Say that the search ran out of time, and how to give it more."""
    return (
        f"the search ended after {formatting.duration(search.seconds)}, with {counted(search.tried, 'set')} of "
        f"strategies tried: --search-seconds gives it longer"
    )


def _why(found: Option, made: Plan, search: Search) -> Iterator[str]:
    """What was chosen, how much memory it needs, and what more memory would allow."""
    names = listed(named(found.added))
    peak = f"{formatting.size(made.peak_bytes)} of {formatting.size(made.limit_bytes)}"
    yield f"{names}: planned peak {peak}, in the {made.peak_phase} phase"
    seen = [option for option in search.seen.values() if option.plan.peak_bytes > search.limit_bytes]
    fastest = [
        option for option in seen if option.plan.seconds_per_step < made.seconds_per_step * (1 - SAME_SPEED_TOLERANCE)
    ]
    if FIDELITIES.index(made.fidelity) == 0:
        fastest = [option for option in fastest if option.plan.fidelity == "exact"]
    if better := min(fastest, key=lambda option: option.plan.peak_bytes, default=None):
        faster = made.seconds_per_step / better.plan.seconds_per_step - 1
        needed = int(better.plan.peak_bytes / (1 - SPARE_SHARE[made.device.kind]))
        names = listed(named(better.added))
        yield f"a machine with {formatting.size(needed)} would be {faster:.0%} faster, with {names}"
    else:
        yield "more memory would make it no faster"
    if search.cut_short:
        yield f"{not_all_was_tried(search)}, as a run does"


def _place(resolved: ResolvedRecipe) -> Path_:
    return next(part.path for part in resolved.recipe.memory if isinstance(part.plugin, Auto))
