"""What a plugin rejects, reported at its place in the recipe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from toolkit.errors import OptionError, PluginError, RecipeError, UnavailableError
from toolkit.recipe.document import Path_, dotted
from toolkit.recipe.schema import Recipe


@contextlib.contextmanager
def refusals_placed(recipe: Recipe, path: Path_) -> Iterator[None]:
    """Add its place in the recipe to what the plugin at this path rejects."""
    try:
        yield
    except OptionError as error:
        raise recipe.error(error.message, (*path, error.option) if error.option else path) from error
    except UnavailableError as error:
        where = (*path, error.option) if error.option else path
        raise UnavailableError(f"{recipe.document.place(where)}: {dotted(where)}: {error.message}") from error
    except PluginError as error:
        raise RecipeError(recipe.error(str(error), (*path, "plugin")).problems) from error
