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
from toolkit.recipe.resolve import ResolvedRecipe, leaves
from toolkit.recipe.schema import DEFAULTS, FORMAT, SINGLE_SECTIONS
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
        "report_to",
    }
)
"""Training settings that change no number of the model, such as how often it is logged and saved."""


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
    """Each section and strategy: its key, its path in the recipe, the class of its options, and its values."""
    recipe, data = resolved.recipe, resolved.data()
    for section in SINGLE_SECTIONS:
        yield section, (section,), type(recipe.one(section)), data[section]
    for index, (part, values) in enumerate(zip(recipe.many("memory"), data["memory"], strict=True)):
        if not (isinstance(part.plugin, Strategy) and part.plugin.claims == frozenset({"saves"})):
            yield f"memory.{part.name}", ("memory", index), type(part.plugin), values
    training = {name: value for name, value in data["training"].items() if name not in WITHOUT_EFFECT}
    if training["on_spike"] != "skip-batch":  # stopping at a spike or only warning changes no number
        training["on_spike"] = Training.model_fields["on_spike"].default
    yield "training", ("training",), Training, training


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values))
