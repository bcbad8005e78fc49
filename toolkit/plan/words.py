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


def in_gb(size: float) -> str:
    """Bytes as people say them."""
    return f"{size / 1e9:.2f} GB" if abs(size) < 1e10 else f"{size / 1e9:.1f} GB"


def in_parameters(count: float) -> str:
    """A size of model as people say it: 1.3B, 124M, 950K."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{float(f'{count / size:.3g}'):g}{suffix}"
    return f"{count:.0f}"
