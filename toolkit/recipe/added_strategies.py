"""Memory strategies that the command line adds to those of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from pydantic import ValidationError

from toolkit.errors import OptionError, PluginError, RecipeError, UsageError
from toolkit.recipe.document import parse
from toolkit.recipe.schema import Recipe, component


def with_strategies(recipe: Recipe, texts: Iterable[str]) -> Recipe:
    """The recipe with more memory strategies at the end of its list.

    Args:
        recipe: the recipe, which keeps its own.
        texts: each a name, or a mapping in YAML with `plugin` and options.

    Raises:
        UsageError: there is no such strategy, or it refuses its options.
    """
    parts = list(recipe.memory)
    for text in texts:
        option = f"--strategy {text}"
        try:
            written = parse(f"value: {text or 'null'}", option).data["value"]
        except RecipeError as error:
            raise UsageError(f"{option}: {error.problems[0].message}") from None
        entry = {"plugin": written} if isinstance(written, str) else written
        if not isinstance(entry, Mapping) or not isinstance(entry.get("plugin"), str):
            raise UsageError(f"{option}: write it as --strategy NAME, or --strategy '{{plugin: NAME, option: value}}'")
        options = {name: value for name, value in entry.items() if name != "plugin"}
        place = max((int(part.path[1]) for part in parts), default=-1) + 1
        try:
            parts.append(component(recipe.registry, "memory", entry["plugin"], options, ("memory", place)))
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(f"{option}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except (OptionError, PluginError) as error:
            raise UsageError(f"{option}: {error}") from None
    return replace(recipe, memory=tuple(parts))
