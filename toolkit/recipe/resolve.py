"""Recipe -> ResolvedRecipe: every value that the run will use, and who set it.

A resolved recipe is itself a recipe: written as YAML, it validates to the same run. Nothing here imports torch.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from toolkit.api import Device, Fidelity
from toolkit.errors import OptionError
from toolkit.recipe import catalog, trackers
from toolkit.recipe.document import Document, Path_, dotted, read, with_override, with_value
from toolkit.recipe.length import total_steps
from toolkit.recipe.mix import sources_of
from toolkit.recipe.schedules import check_length, check_schedule
from toolkit.recipe.schema import FORMAT, LIST_SECTIONS, SINGLE_SECTIONS, Recipe, plugin_paths, validate
from toolkit.recipe.settings import Training
from toolkit.recipe.strategies import StrategyChange, merge
from toolkit.registry import Registry

Overrides = Mapping[str, object] | Iterable[str]
"""Values in place of a recipe's: {"training.max_steps": 10}, or ["training.max_steps=10"] as --set takes them."""


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with the memory strategies' changes applied, for one device."""

    name: str
    """The recipe's own name: its file name without the extension."""
    recipe: Recipe
    training: Training
    changes: tuple[StrategyChange, ...]
    device: Device

    @property
    def fidelity(self) -> Fidelity:
        """The lowest fidelity among the recipe's memory strategies."""
        order: list[Fidelity] = ["exact", "approximate", "different"]
        return max((part.plugin.fidelity for part in self.recipe.memory), key=order.index, default="exact")

    @property
    def micro_batch_size(self) -> int:
        """Sequences per forward pass on one device, before the world size is taken into account."""
        return self.training.micro_batch_size or self.training.global_batch_size

    def with_training(self, **settings: Any) -> ResolvedRecipe:
        """A copy with other training settings; their recorded origins stay as they are."""
        return replace(self, training=self.training.model_copy(update=settings))

    def set_at(self, setting: str) -> Path_:
        """The recipe path where a training setting is set: a memory strategy, or the training section."""
        return next((change.path for change in self.changes if change.setting == setting), ("training", setting))

    def data(self) -> dict[str, Any]:
        """The complete recipe as plain data."""
        recipe = self.recipe
        return {
            "recipe": FORMAT,
            "description": recipe.description,
            "plugin_paths": list(recipe.plugin_paths),
            **{section: getattr(recipe, section).data() for section in SINGLE_SECTIONS},
            **{section: [part.data() for part in getattr(recipe, section)] for section in LIST_SECTIONS},
            "training": self.training.model_dump(mode="json"),
        }

    def origin(self, path: Path_) -> str:
        """Who set the value at this path."""
        for change in self.changes:
            if path == ("training", change.setting):
                return f"{change.strategy}: {change.change.why}" if change.change.why else change.strategy
        places = self.recipe.document.places
        # A bare plugin name has the place of its section: `tokenizer: byte-bpe`.
        place = places.get(path) or (places.get(path[:-1]) if path[-1] == "plugin" else None)
        if place:
            return place.file if place.file.startswith("--set") else f"line {place.line}"
        sources = sources_of(self.recipe).values()
        filters = (part for source in sources for part in source.filters)
        parts = (*self.recipe.components, *sources, *filters)
        owners = [part for part in parts if part.path == path[: len(part.path)]]
        owner = max(owners, key=lambda part: len(part.path), default=None)
        return f"default of {owner.name}" if owner and path[-1] != "plugin" else "default"

    def origins(self) -> dict[str, tuple[Any, str]]:
        """Every value of the complete recipe with who set it, by dotted path."""
        return {dotted(path): (value, self.origin(path)) for path, value in leaves(self.data())}

    def to_yaml(self, *, for_any_device: bool = False, changed: Mapping[Path_, Any] | None = None) -> str:
        """The complete recipe as YAML, each value with who set it as a comment.

        Args:
            for_any_device: leave out what the memory strategies have set for this device, so that they set it anew.
            changed: values to write in place of the recipe's, by path.
        """
        data: Any = self.data()
        for path, value in (changed or {}).items():
            within = data
            for key in path[:-1]:
                within = within[key]
            within[path[-1]] = value
        if for_any_device:
            for change in self.changes:
                del data["training"][change.setting]
        yaml = YAML()
        yaml.width = 1000
        text = io.StringIO()
        yaml.dump(self._commented(data, ()), text)
        return text.getvalue()

    def _commented(self, value: Any, path: Path_) -> Any:
        if isinstance(value, Mapping):
            result = CommentedMap()
            for key, child in value.items():
                result[key] = self._commented(child, (*path, key))
                if is_leaf(child):
                    result.yaml_add_eol_comment(self.origin((*path, key)), key, column=0)
            return result
        if isinstance(value, list) and is_leaf(value):
            row = CommentedSeq(value)
            row.fa.set_flow_style()
            return row
        if isinstance(value, list):
            return CommentedSeq([self._commented(child, (*path, index)) for index, child in enumerate(value)])
        return value


def leaves(data: Any, path: Path_ = ()) -> Iterable[tuple[Path_, Any]]:
    """All values in nested plain data with their paths; a list of scalars is a single value."""
    if is_leaf(data):
        yield path, data
        return
    for key, value in data.items() if isinstance(data, Mapping) else enumerate(data):
        yield from leaves(value, (*path, key))


def is_leaf(data: Any) -> bool:
    """Whether this is a single value: no mapping (unless empty), and no list of mappings or lists."""
    if isinstance(data, Mapping):
        return not data
    return not isinstance(data, (list, tuple)) or not any(isinstance(item, (Mapping, list, tuple)) for item in data)


def load(name: str, *, overrides: Overrides = (), plugin_folders: Iterable[Path] = ()) -> Recipe:
    """Read the recipe of this name or path, apply the overrides, and validate it.

    Raises:
        UsageError: there is no such recipe, or an override cannot be read.
        RecipeError: it is invalid.
        PluginError: a plugin folder does not exist, or is not laid out as one.
    """
    file = catalog.find(name)
    document = read(file)
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            document = with_value(document, key, value)
    else:
        for assignment in overrides:
            document = with_override(document, assignment)
    return validate(document, registry_for(document, file, plugin_folders))


def registry_for(document: Document, file: Path, plugin_folders: Iterable[Path] = ()) -> Registry:
    """The plugins that a recipe may name: installed, in its own folders (relative to it), and in the given ones."""
    own = [file.parent / folder for folder in plugin_paths(document)]
    return Registry.discover([*own, *plugin_folders])


def _check_export_folders(recipe: Recipe) -> None:
    """Refuse two exporters that fill the same folder: they would overwrite each other at the end of the run."""
    filled: dict[str, str] = {}
    for part in recipe.exporters:
        folder = part.plugin.folder
        if folder and folder in filled:
            raise recipe.error(
                f"{filled[folder]} and {part.name} both write the folder {folder}; remove one", part.path
            )
        if folder:
            filled[folder] = part.name


def _check_used(recipe: Recipe, training: Training) -> None:
    """Refuse a setting without effect because another one is off, one that does not suit the blocks or the schedule."""
    defaults = Training.model_fields
    unused = {
        "warmup_block_steps": (
            "warmup_block_size",
            training.warmup_block_size is None
            and training.warmup_block_steps != defaults["warmup_block_steps"].default,
        ),
        "optim_args": ("optim", training.optim_args is not None and training.optim is None),
        "gradient_checkpointing_every": (
            "gradient_checkpointing",
            training.gradient_checkpointing_every > 1 and not training.gradient_checkpointing,
        ),
    }
    for setting, (switch, is_unused) in unused.items():
        if is_unused:
            raise recipe.error(f"{setting} has no effect without {switch}; set it too", ("training", setting))
    whole, short = recipe.objective.plugin.block_size, training.warmup_block_size
    if short and (short >= whole or whole % short):
        fit = [size for size in range(2, whole) if whole % size == 0]
        raise recipe.error(
            f"blocks of {whole} tokens (objective.block_size) cannot be cut into shorter pieces of {short}; into those "
            f"of {', '.join(map(str, fit)) or 'no length'} they can",
            ("training", "warmup_block_size"),
        )
    try:
        check_schedule(training)
    except OptionError as error:
        name = () if error.option is None else (error.option,)
        raise recipe.error(error.message, ("training", "lr_scheduler_kwargs", *name)) from None
    if steps := total_steps(training, block_size=whole, blocks=None):
        check_steps(recipe, training, steps)


def check_steps(recipe: Recipe, training: Training, steps: int) -> None:
    """Check that a run of so many steps is long enough for its schedules.

    Raises:
        RecipeError: it is not; with the place.
    """
    try:
        check_length(training, steps)
    except OptionError as error:
        name = error.option or ""
        place = (name,) if name in Training.model_fields else ("lr_scheduler_kwargs", name)
        raise recipe.error(error.message, ("training", *place)) from None


def resolve(recipe: Recipe, device: Device) -> ResolvedRecipe:
    """Apply the memory strategies' changes to the recipe's settings.

    Raises:
        RecipeError: strategies conflict, or their settings are invalid together; two exporters fill the same folder;
            or a setting would have no effect.
    """
    _check_export_folders(recipe)
    changes = merge(recipe, device)
    settings = recipe.training.model_dump() | {change.setting: change.change.value for change in changes}
    try:
        training = Training.model_validate(settings)
    except ValidationError as errors:
        cause = errors.errors()[0].get("ctx", {}).get("error", errors)
        setting = getattr(cause, "setting", changes[0].setting)
        at = next((change for change in changes if change.setting == setting), changes[0])
        strategies = " and ".join(sorted({change.strategy for change in changes}))
        whose = at.strategy if at.setting == setting else f"the combination of what {strategies} set"
        raise recipe.error(f"{whose} cannot be used: {cause}", at.path) from None
    _check_used(recipe, training)
    return ResolvedRecipe(_name(recipe), recipe, training, changes, device)


def check_trackers(recipe: Recipe) -> None:
    """Check that the trackers in `report_to` are installed here.

    Raises:
        RecipeError: one is not.
    """
    for tracker in recipe.training.report_to:
        if missing := trackers.missing(tracker):
            raise recipe.error(
                f"{tracker} is not installed here: pip install {' '.join(missing)}, or remove it",
                ("training", "report_to"),
            )


def _name(recipe: Recipe) -> str:
    """The recipe's file name as valid UTF-8: it becomes the run's folder, and the libraries write to no other path."""
    stem = os.fsencode(Path(recipe.document.source).stem)
    return stem.decode("utf-8", "replace").replace("\N{REPLACEMENT CHARACTER}", "_")
