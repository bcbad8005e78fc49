"""Plans and choices in words; imports nothing at run time, so that the command line can import it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.recipe.schema import Component


def named(parts: Iterable[Component]) -> tuple[str, ...]:
    """Strategies by name, each with the options that differ from their defaults."""
    words = []
    for part in parts:
        given = part.plugin.model_dump(mode="json", exclude_defaults=True)
        options = ", ".join(f"{name} {value}" for name, value in given.items())
        words.append(f"{part.name} ({options})" if options else part.name)
    return tuple(words)


def listed(names: Iterable[str]) -> str:
    """The names, separated by commas."""
    return ", ".join(names) or "no strategy"
