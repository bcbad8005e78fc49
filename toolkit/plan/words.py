"""Plans and choices in words; imports nothing, so that the command line can."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.recipe.schema import Component


def named(parts: Iterable[Component]) -> tuple[str, ...]:
    """Strategies by name, each with the options that are not as they are by default."""
    words = []
    for part in parts:
        given = part.plugin.model_dump(mode="json", exclude_defaults=True)
        options = ", ".join(f"{name} {value}" for name, value in given.items())
        words.append(f"{part.name} ({options})" if options else part.name)
    return tuple(words)


def listed(names: Iterable[str]) -> str:
    """Names one after the other."""
    return ", ".join(names) or "no strategy"
