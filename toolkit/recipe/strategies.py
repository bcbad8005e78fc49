"""Merges what memory strategies declare, and derives their conflicts from that.

There is no list of pairs: two strategies exclude each other because they claim the same resource, or because
they (or the recipe) give one setting two values. Their order in the recipe never matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from toolkit.api import Change, Device, Requirement
from toolkit.errors import PluginError, Problem, RecipeError, nearest
from toolkit.recipe.document import Path_, dotted
from toolkit.recipe.schema import DEFAULTS, Recipe, StrategyComponent
from toolkit.recipe.settings import Training

SETTINGS_OF_THE_RECIPE = frozenset({"global_batch_size", "seed", "num_train_epochs", "max_steps", "max_tokens"})
"""Settings that belong to the recipe, and that no strategy may change."""


@dataclass(frozen=True)
class StrategyChange:
    """A setting that a strategy sets."""

    strategy: str
    path: Path_
    setting: str
    change: Change


def merge(recipe: Recipe, device: Device) -> tuple[StrategyChange, ...]:
    """Return the settings that the recipe's strategies set.

    Raises:
        RecipeError: strategies conflict with each other, with the recipe or with the device.
        PluginError: a strategy sets something that strategies may not.
    """
    changes = [change for part in recipe.memory for change in _changes(part, recipe, device)]
    problems = [
        *_claimed_twice(recipe),
        *_unmet_requirements(recipe, device),
        *_set_twice(changes, recipe),
        *_against_the_recipe(changes, recipe),
        *_two_optimizers(recipe),
    ]
    if problems:
        raise RecipeError(problems)
    return tuple(changes)


def _changes(part: StrategyComponent, recipe: Recipe, device: Device) -> Iterator[StrategyChange]:
    for setting, change in part.plugin.changes(recipe.training, device).items():
        if setting not in Training.model_fields:
            raise PluginError(
                f"{part.name} sets {setting!r}: no such setting; {nearest(setting, Training.model_fields)}"
            )
        if setting in SETTINGS_OF_THE_RECIPE:
            raise PluginError(f"{part.name} sets {setting}, which only the recipe may set")
        yield StrategyChange(part.name, part.path, setting, change)


def _claimed_twice(recipe: Recipe) -> Iterator[Problem]:
    holders: dict[str, StrategyComponent] = {}
    for part in recipe.memory:
        for claim in sorted(part.plugin.claims):
            if claim in holders:
                other = holders[claim].name
                pair = (
                    "is listed twice"
                    if other == part.name
                    else f"and {other} exclude each other: both manage the {claim}"
                )
                yield _problem(recipe, part.path, f"{part.name} {pair}; remove one")
            holders[claim] = part


def _unmet_requirements(recipe: Recipe, device: Device) -> Iterator[Problem]:
    claimed = frozenset(claim for part in recipe.memory for claim in part.plugin.claims)
    for part in recipe.memory:
        for requirement in sorted(part.plugin.requires(), key=lambda one: (one.kind, one.name)):
            if missing := unmet(requirement, device, claimed):
                cure = f", or {requirement.cure}" if requirement.cure else ""
                yield _problem(recipe, part.path, f"{part.name} needs {missing}{cure}")


def unmet(requirement: Requirement, device: Device, claimed: Iterable[str]) -> str:
    """What is missing, in words; nothing if the requirement is met.

    Args:
        requirement: a strategy's.
        device: what the run would use.
        claimed: what the strategies of the recipe claim.
    """
    name = requirement.name
    if requirement.kind == "package":
        return "" if find_spec(name) else f"the package {name}; install it: pip install {name}"
    if requirement.kind == "claim":
        return "" if name in claimed else f"another strategy that manages the {name}"
    least, found = requirement.compute_capability, device.compute_capability
    if name == device.kind and (least is None or (found is not None and found >= least)):
        return ""
    wanted = f"a {name} device" + (f" of compute capability {_dotted(least)} or later" if least else "")
    which = f" ({_dotted(found)})" if least and found else ""
    return f"{wanted}, but this machine has: {device.name}{which}"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _set_twice(changes: list[StrategyChange], recipe: Recipe) -> Iterator[Problem]:
    first: dict[str, StrategyChange] = {}
    for change in changes:
        other = first.setdefault(change.setting, change)
        if other.change.value != change.change.value:
            message = (
                f"{change.strategy} sets {change.setting} to {change.change.value!r} and {other.strategy} sets it to "
                f"{other.change.value!r}; remove one of the two"
            )
            yield _problem(recipe, change.path, message)


def _against_the_recipe(changes: list[StrategyChange], recipe: Recipe) -> Iterator[Problem]:
    for change in changes:
        written: Any = getattr(recipe.training, change.setting)
        if change.setting in recipe.training.model_fields_set and written != change.change.value:
            message = (
                f"set to {written!r} here, but {change.strategy} ({dotted(change.path)}) sets it to "
                f"{change.change.value!r}; remove one of the two"
            )
            yield _problem(recipe, ("training", change.setting), message)


def _two_optimizers(recipe: Recipe) -> Iterator[Problem]:
    written = recipe.optimizer.name
    for part in recipe.memory:
        # A resolved recipe spells out the default optimizer too, so that one is no conflict.
        if "optimizer" in part.plugin.claims and written != DEFAULTS["optimizer"]:
            message = f"{written} is set here, but {part.name} brings its own optimizer; remove one of the two"
            yield _problem(recipe, ("optimizer",), message)


def _problem(recipe: Recipe, path: Path_, message: str) -> Problem:
    return Problem(recipe.document.place(path), dotted(path), message)
