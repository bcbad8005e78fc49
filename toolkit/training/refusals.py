"""What a plugin rejects, reported at its place in the recipe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from toolkit.errors import OptionError, PluginError, RecipeError, ToolkitError, UnavailableError
from toolkit.recipe.document import Path_, dotted
from toolkit.recipe.schema import Recipe

PACKING_OPTIONS: Mapping[str | None, Path_] = {"block_size": ("objective", "block_size"), "tokenizer": ("tokenizer",)}
"""Recipe paths of the options that packing may reject; anything else is reported at the dataset."""


def placed(error: ToolkitError, recipe: Recipe, path: Path_) -> ToolkitError:
    """What packing has rejected about the dataset at this path, with its place in the recipe."""
    if isinstance(error, OptionError) and error.option in PACKING_OPTIONS:
        return recipe.error(error.message, PACKING_OPTIONS[error.option])
    try:
        with refusals_placed(recipe, path):
            raise error
    except ToolkitError as with_place:
        return with_place


@contextlib.contextmanager
def refusals_placed(recipe: Recipe, path: Path_) -> Iterator[None]:
    """Add its place in the recipe to what the plugin at this path rejects."""
    try:
        yield
    except OptionError as error:
        raise recipe.error(error.message, (*path, *_path_of(error.option))) from error
    except UnavailableError as error:
        where = (*path, *_path_of(error.option))
        raise UnavailableError(f"{recipe.document.place(where)}: {dotted(where)}: {error.message}") from error
    except PluginError as error:
        raise RecipeError(recipe.error(str(error), (*path, "plugin")).problems) from error


def _path_of(option: str | None) -> Path_:
    """Where an option is in its section: `filters.1` is an item of a list."""
    return tuple(int(key) if key.isdigit() else key for key in option.split(".")) if option else ()
