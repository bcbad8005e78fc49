"""Runs any recipe end to end in seconds, with no network, before a person pays for a GPU.

The embedded documentation stands in for the data and a byte-level tokenizer for the tokenizer; the model keeps
its architecture and shrinks. Objective, optimizer, memory strategies, callbacks and exporters are the recipe's
own. The run is stopped half-way, resumed in the same process, exported, and reloaded by its exporter.

A rehearsal is never mistaken for the run: it has its own directory, `NAME-rehearsal`, which says what stood in.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from toolkit.api import Device, Objective, Plugin
from toolkit.errors import InterruptedRun, UsageError
from toolkit.files import read_json
from toolkit.plan.variants import without_choosers
from toolkit.progress import Listener, Message, RunResult
from toolkit.recipe.document import Path_
from toolkit.recipe.schema import Component, Recipe
from toolkit.registry import Registry
from toolkit.resolve import ResolvedRecipe, resolve
from toolkit.train import run

STAND_INS: Mapping[Path_, tuple[str, Mapping[str, object]]] = {
    ("dataset",): ("python-docs", {"max_samples": 60, "eval_fraction": 0.1}),
    ("tokenizer",): ("byte-bpe", {"vocab_size": 1000}),
}
"""What replaces the components that may need a network."""
STEPS = 6
BLOCK_SIZE = 64


def rehearse(recipe: Recipe, *, runs: Path, device: Device, listener: Listener, name: str | None = None) -> RunResult:
    """Train the shrunken recipe to its end, with a stop and a resume in the middle.

    Raises:
        ToolkitError: what would also have stopped the run itself.
        UsageError: the rehearsal's directory belongs to something else.
    """
    recipe = without_choosers(recipe)  # what is small fits as it is
    resolved = resolve(shrunken(recipe, resolve(recipe, device)), device)
    series = f"{name or resolved.name}-rehearsal"
    folder = runs / series
    if (folder / "run.json").is_file() and read_json(folder / "run.json").get("rehearsal"):
        shutil.rmtree(folder)
    elif folder.exists():
        raise UsageError(f"{folder} is not a rehearsal's; move it away, or give the run another --name")
    for stand_in in _told(recipe, resolved.recipe):
        listener(Message(stand_in))
    try:
        run(resolved, runs=runs, name=series, rehearsal=True, stop_after=STEPS // 2, listener=listener)
    except InterruptedRun:
        listener(Message(f"stopped on purpose after step {STEPS // 2}; going on as the same command would"))
    result = run(resolved, runs=runs, name=series, rehearsal=True, listener=listener)
    assert result.steps == STEPS
    return result


def shrunken(recipe: Recipe, resolved: ResolvedRecipe) -> Recipe:
    """The recipe with stand-ins, a small model, small blocks and a few steps; it fits without a choice."""
    recipe = without_choosers(recipe)
    components = {path: _small(path, part) for path, part in recipe.components.items()}
    micro = recipe.training.micro_batch_size or resolved.training.micro_batch_size
    accumulated = recipe.training.global_batch_size > (micro or recipe.training.global_batch_size)
    size = (2 * micro if accumulated else micro) if micro else min(recipe.training.global_batch_size, 4)
    training = recipe.training.model_copy(
        update={
            "max_steps": STEPS,
            "global_batch_size": size,
            "eval_steps": STEPS // 2,
            "logging_steps": 1,
            "warmup_steps": min(recipe.training.warmup_steps, 1),
            "report_to": (),
            "torch_compile": False,  # takes longer than the whole rehearsal
        }
    )
    return replace(recipe, components=components, training=training)


def _small(path: Path_, part: Component) -> Component:
    if path in STAND_INS:
        name, options = STAND_INS[path]
        kind = str(path[0])
        registry = Registry.discover()
        stand_in = registry.load(kind, name).model_validate(options)
        return Component(name, stand_in, registry.offer(kind, name).distribution)
    plugin: Plugin = part.plugin.rehearse()
    if isinstance(plugin, Objective):
        plugin = plugin.model_copy(update={"block_size": min(plugin.block_size, BLOCK_SIZE)})
    return replace(part, plugin=plugin)


def _told(recipe: Recipe, small: Recipe) -> list[str]:
    told = [
        f"rehearsal: the {path[0]} {small.components[path].name} stands in for {part.name}"
        for path, part in recipe.components.items()
        if small.components[path].name != part.name
    ]
    return [*told, f"rehearsal: a small model, blocks of {small.one('objective').block_size} tokens, {STEPS} steps"]
