"""A run's identity, the settings that determine its numbers: two runs with the same identity are the same run.

Settings have dotted keys: `model.dropout`, `memory.lora.r`, `training.seed`. Each says whether anybody has set it,
because defaults may change between versions while a run is unfinished.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from toolkit.api import Strategy
from toolkit.recipe.document import Path_, dotted
from toolkit.recipe.mix import Mix, sources_of
from toolkit.recipe.resolve import ResolvedRecipe, leaves
from toolkit.recipe.schema import DEFAULTS, FILTERS, FORMAT, SINGLE_SECTIONS
from toolkit.recipe.settings import Training

WITHOUT_EFFECT = frozenset(
    {
        "eval_steps",
        "save_steps",
        "save_minutes",
        "save_total_limit",
        "keep_every",
        "save_in_background",
        "logging_steps",
        "dataloader_num_workers",
        "ddp_timeout",
        "elastic",
        "report_to",
        "shard",
        "shard_within_host",
        "shard_reshard_after_forward",
        "shard_cpu_offload",
    }
)
"""Training settings that change no number of the model, such as how often it is logged and saved, or, like the number
of processes, only the order of sums."""


@dataclass(frozen=True)
class Setting:
    """A value in the recipe that determines the run's numbers."""

    value: Any
    default: Any
    """`...` if there is none."""
    is_set: bool
    """Whether the recipe, `--set` or a memory strategy sets it, or it is not the default."""


def identity(resolved: ResolvedRecipe) -> dict[str, Any]:
    """The values by dotted key, as run.json stores them."""
    return {key: setting.value for key, setting in settings(resolved).items()}


def settings(resolved: ResolvedRecipe) -> dict[str, Setting]:
    """Every setting that determines numbers, by dotted key."""
    found = {"recipe": Setting(FORMAT, FORMAT, is_set=True)}
    for key, path, model, values in _sections(resolved):
        # Through JSON, like run.json, so that a tuple equals its list.
        defaults = dict(leaves(_plain(model.model_construct().model_dump(mode="json", warnings=False))))
        defaults["plugin",] = DEFAULTS.get(key, ...)
        for inner, value in leaves(_plain(values)):
            default = defaults.get(inner, ...)
            is_set = not resolved.origin((*path, *inner)).startswith("default") or value != default
            found[dotted((key, *inner))] = Setting(value, default, is_set)
    return found


def knows(resolved: ResolvedRecipe, key: str) -> bool:
    """Whether the recipe's plugins have an option of this key."""
    for section, _, model, _ in _sections(resolved):
        if key.startswith(f"{section}."):
            name = key.removeprefix(f"{section}.").partition(".")[0].partition("[")[0]
            return name == "plugin" or name in model.model_fields
    return False


def _sections(resolved: ResolvedRecipe) -> Iterator[tuple[str, Path_, type[BaseModel], Mapping[str, Any]]]:
    """Each filter, section and strategy: its key, its path in the recipe, the class of its options, and its values."""
    recipe, data = resolved.recipe, resolved.data()
    datasets = [(recipe.dataset, data["dataset"])]
    if isinstance(recipe.dataset.plugin, Mix):  # each source's dataset first, so that it is found before the mixture
        del data["dataset"]["max_passes"]  # whether a run is refused, and no number of it
        for written, source in zip(data["dataset"]["sources"], sources_of(recipe).values(), strict=True):
            del written["max_passes"]
            datasets.append((source, written.pop("dataset")))
    for dataset, options in datasets:
        for one, values in zip(dataset.filters, options.pop(FILTERS), strict=True):
            yield dotted(one.path), one.path, type(one.plugin), values
    for source, options in datasets[1:]:
        yield dotted(source.path), source.path, type(source.plugin), options
    for section in SINGLE_SECTIONS:
        yield section, (section,), type(getattr(recipe, section).plugin), data[section]
    for index, (part, values) in enumerate(zip(recipe.memory, data["memory"], strict=True)):
        if not _is_without_effect(part.plugin, resolved):
            yield f"memory.{part.name}", ("memory", index), type(part.plugin), values
    training = {name: value for name, value in data["training"].items() if name not in WITHOUT_EFFECT}
    if training["on_spike"] != "skip-batch":  # stopping at a spike or only warning changes no number
        training["on_spike"] = Training.model_fields["on_spike"].default
    yield "training", ("training",), Training, training


def _is_without_effect(strategy: Strategy, resolved: ResolvedRecipe) -> bool:
    """Whether all that a strategy does is to set settings that determine no numbers."""
    hooks = ("apply", "loss", "wrap_optimizer")
    if any(getattr(type(strategy), hook) is not getattr(Strategy, hook) for hook in hooks):
        return False
    changes = strategy.changes(resolved.recipe.training, resolved.device)
    return bool(changes) and changes.keys() <= WITHOUT_EFFECT


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values))
