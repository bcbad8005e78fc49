"""Files and folders that a recipe names from the current directory, for the same recipe in another one."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.recipe.document import Path_
from toolkit.recipe.mix import sources_of
from toolkit.recipe.resolve import ResolvedRecipe


def absolute_paths(resolved: ResolvedRecipe, plugin_folders: Iterable[Path] = ()) -> dict[Path_, Any]:
    """What the recipe has to say elsewhere, by path: an absolute path for each relative one that leads somewhere here.

    A name that leads nowhere here stays as it is: it is one of the Hub's, or of a file that only the other machine has.
    Folders of plugins that a command was given are added to the recipe's own.
    """
    recipe = resolved.recipe
    sources = sources_of(recipe).values()
    parts = {part.path: part for part in (*recipe.components, *sources)}
    parts |= {part.path: part for source in sources for part in source.filters}
    changed: dict[Path_, Any] = {}
    for path, part in parts.items():
        for option in part.plugin.local_paths:
            before = getattr(part.plugin, option)
            if (after := _absolute(before)) != before:
                changed[*path, option] = after
    beside = Path(recipe.document.source).absolute().parent
    if folders := [*(beside / own for own in recipe.plugin_paths), *(given.absolute() for given in plugin_folders)]:
        changed["plugin_paths",] = [str(folder) for folder in folders]
    return changed


def _absolute(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_absolute(one) for one in value]
    if not isinstance(value, str) or not value:
        return value
    place = Path(value).expanduser()
    is_there = place.exists() or any(glob.iglob(str(place), recursive=True))  # noqa: PTH207 - as the datasets match it
    return str(place.absolute()) if is_there else value
