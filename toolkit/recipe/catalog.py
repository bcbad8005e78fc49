"""Where recipes live: those that come with the toolkit, and the user's own files."""

from __future__ import annotations

import contextlib
from pathlib import Path

import toolkit
from toolkit.errors import UsageError, nearest


def shipped() -> dict[str, Path]:
    """The recipes that come with the toolkit, by name, in alphabetical order."""
    package = Path(toolkit.__file__).parent
    inside_wheel, checkout = package / "_recipes", package.parent / "recipes"
    folder = inside_wheel if inside_wheel.is_dir() else checkout
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """Return the file of a recipe: a path to a file, or the name of one that comes with the toolkit.

    Raises:
        UsageError: there is no such recipe.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        with contextlib.suppress(OSError):  # the name is too long, say
            if Path(name).is_file():
                return Path(name)
        raise UsageError(f"there is no recipe file {name}")
    recipes = shipped()
    if name in recipes:
        return recipes[name]
    here = f"; for a file write its path, ./{name}.yaml" if Path(f"{name}.yaml").is_file() else ""
    raise UsageError(f"no recipe is named {name!r}; {nearest(name, recipes)}{here}")
