"""Runs any recipe end to end in seconds, with no network, before a person pays for a GPU.

Python's own documentation stands in for the data, and a byte-level BPE for the tokenizer; the model keeps its
architecture and shrinks. Objective, optimizer, memory strategies, callbacks and exporters are the recipe's own,
scaled down where they can be. The run is stopped half-way, resumed in the same process, and exported; the exporter
reloads what it wrote.

A rehearsal is never mistaken for the run: it has its own directory, `NAME-rehearsal`, and says what stood in.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from toolkit.api import Device, Exporter, Filter, Objective, Plugin
from toolkit.errors import InterruptedRun, UsageError
from toolkit.events import Listener, Message, RunResult
from toolkit.lifecycle.launch import run
from toolkit.planning.variants import without_choosers
from toolkit.recipe.document import Path_
from toolkit.recipe.mix import Mix, sources_of
from toolkit.recipe.resolve import ResolvedRecipe, resolve
from toolkit.recipe.schema import FILTERS, LIST_SECTIONS, Component, Recipe, component
from toolkit.recipe.settings import Training
from toolkit.registry import Registry
from toolkit.system.files import read_json

STAND_INS: Mapping[Path_, tuple[str, Mapping[str, object]]] = {
    ("dataset",): ("python-docs", {"max_samples": 60, "eval_fraction": 0.1}),
    ("tokenizer",): ("byte-bpe", {"vocab_size": 1000}),
}
"""Replacements for the components that may need a network."""
REHEARSAL_STEPS = 6
REHEARSAL_BLOCK_SIZE = 64


@dataclass(frozen=True)
class StandIn:
    """Something in the recipe that the rehearsal replaced, and so did not test."""

    section: str
    """Section of the recipe, such as "model"."""
    option: str | None
    """None if the whole plugin was replaced; in a section with several plugins, prefixed with the plugin's name."""
    recipe: Any
    """What the recipe says: the plugin's name, or the option's value."""
    rehearsal: Any
    """What was used instead; None for nothing."""


def rehearse(
    recipe: Recipe, *, runs: Path, device: Device, listener: Listener, name: str | None = None
) -> tuple[RunResult, list[StandIn]]:
    """Train the shrunken recipe to its end, with a stop and a resume in the middle.

    Returns:
        The result, and what it does not vouch for.

    Raises:
        ToolkitError: what would also have stopped the run itself.
        UsageError: the rehearsal's directory belongs to something else.
    """
    small = shrunken(recipe, resolve(without_choosers(recipe), device))
    resolved = resolve(small, device)
    series = f"{name or resolved.name}-rehearsal"
    folder = runs / series
    if (folder / "run.json").is_file() and read_json(folder / "run.json").get("rehearsal"):
        shutil.rmtree(folder)
    elif folder.exists():
        raise UsageError(f"{folder} exists and is not a rehearsal; move it away, or choose another --name")
    block_size = small.objective.plugin.block_size
    listener(Message(f"rehearsal: a small model, blocks of {block_size} tokens, {REHEARSAL_STEPS} steps"))
    try:
        run(resolved, runs=runs, name=series, rehearsal=True, stop_after=REHEARSAL_STEPS // 2, listener=listener)
    except InterruptedRun:
        listener(Message(f"stopped on purpose after step {REHEARSAL_STEPS // 2}; resuming as the same command would"))
    result = run(resolved, runs=runs, name=series, rehearsal=True, listener=listener)
    assert result.steps == REHEARSAL_STEPS
    return result, list(stand_ins(recipe, small))


def shrunken(recipe: Recipe, resolved: ResolvedRecipe) -> Recipe:
    """The recipe with stand-ins, a small model, small blocks and a few steps; it fits, so `auto` is left out."""
    recipe = without_choosers(recipe)
    micro = recipe.training.micro_batch_size or resolved.training.micro_batch_size
    accumulated = recipe.training.global_batch_size > (micro or recipe.training.global_batch_size)
    size = (2 * micro if accumulated else micro) if micro else min(recipe.training.global_batch_size, 4)
    training = recipe.training.model_copy(
        update={
            "max_steps": REHEARSAL_STEPS,
            "global_batch_size": size,
            "eval_steps": REHEARSAL_STEPS // 2,
            "logging_steps": 1,
            "warmup_steps": min(recipe.training.warmup_steps, 1),
            "lr_scheduler_kwargs": _shortened(recipe.training.lr_scheduler_kwargs),
            "report_to": (),
            "torch_compile": False,  # takes longer than the whole rehearsal
        }
    )
    small = recipe.with_each(_small)
    if training.warmup_block_size is not None:
        shorter, odd = divmod(small.objective.plugin.block_size, 2)
        cut = {"warmup_block_size": shorter, "warmup_block_steps": REHEARSAL_STEPS // 2}
        none = dict.fromkeys(cut) | {"warmup_block_steps": Training().warmup_block_steps}
        training = training.model_copy(update=none if odd or shorter < 2 else cut)
    return replace(small, training=training)


def _shortened(schedule: Mapping[str, float | int | str]) -> dict[str, float | int | str]:
    """A schedule's arguments, without the lengths of the whole run."""
    lengths = {"num_decay_steps": 1} if "num_decay_steps" in schedule else {}
    return {name: value for name, value in schedule.items() if name != "num_stable_steps"} | lengths


def _small(part: Component) -> Component:
    if isinstance(part.plugin, Mix):  # mixed as in the run, from sources that are all made of the same
        return replace(part, plugin=part.plugin.with_datasets(_stand_in).rehearse())
    if part.path in STAND_INS:
        return _stand_in(part)
    plugin: Plugin = part.plugin.rehearse()
    if isinstance(plugin, Objective):
        plugin = plugin.model_copy(update={"block_size": min(plugin.block_size, REHEARSAL_BLOCK_SIZE)})
    return replace(part, plugin=plugin)


def _stand_in(part: Component) -> Component[Any]:
    name, options = STAND_INS[part.path[:1]]
    return component(Registry.discover(), part.plugin.kind, name, options, part.path)


def stand_ins(recipe: Recipe, small: Recipe) -> Iterator[StandIn]:
    """The differences between the shrunken recipe and the recipe itself."""
    by_path = {part.path: part for part in small.components}
    for part in recipe.components:
        section, there = FILTERS if isinstance(part.plugin, Filter) else str(part.path[0]), by_path.get(part.path)
        if isinstance(part.plugin, Mix):
            small_sources = sources_of(small)
            for name, source in sources_of(recipe).items():
                yield StandIn(section, name, source.name, small_sources[name].name)
                yield from (StandIn(FILTERS, None, each.name, None) for each in source.filters)
        elif there is None or there.name != part.name:
            yield StandIn(section, None, part.name, there and there.name)
        elif isinstance(part.plugin, Exporter) and part.plugin.folder is None:
            yield StandIn(section, None, part.name, None)  # by its contract it sends nothing away in a rehearsal
        elif options := list(_differing(part.plugin, there.plugin)):
            prefix = f"{part.name}." if section in LIST_SECTIONS else ""
            yield from (StandIn(section, prefix + option, *values) for option, *values in options)
        elif there.plugin != part.plugin:  # by more than its options
            summary = (type(part.plugin).rehearse.__doc__ or "A small one.").splitlines()[0].rstrip(".")
            yield StandIn(section, None, part.name, summary[0].lower() + summary[1:])
    for option, *values in _differing(recipe.training, small.training):
        yield StandIn("training", option, *values)


def _differing(settings: BaseModel, small: BaseModel) -> Iterator[tuple[str, Any, Any]]:
    before, after = settings.model_dump(mode="json"), small.model_dump(mode="json")
    return ((name, value, after[name]) for name, value in before.items() if after[name] != value)
