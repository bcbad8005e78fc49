"""Reads back who set each value of a run, which resolved.yaml says in a comment after the value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from toolkit.recipe.document import Path_, dotted


@dataclass(frozen=True)
class ResolvedValue:
    """One value of the resolved recipe."""

    path: str
    value: Any
    origin: str

    @property
    def chosen(self) -> bool:
        """Whether somebody set it: the recipe, a strategy or the command line."""
        return not self.origin.startswith("default")


def settings(file: Path) -> dict[str, list[ResolvedValue]]:
    """Every value in resolved.yaml with its origin, by section."""
    if not file.exists():
        return {}
    data = YAML().load(file.read_text(encoding="utf-8"))
    found = (ResolvedValue(dotted(path), value, origin) for path, value, origin in _commented_leaves(data, (), ""))
    sections: dict[str, list[ResolvedValue]] = {}
    for setting in found:
        sections.setdefault(setting.path.partition(".")[0].partition("[")[0], []).append(setting)
    return sections


def _commented_leaves(value: Any, path: Path_, comment: str) -> Iterator[tuple[Path_, Any, str]]:
    if isinstance(value, CommentedMap) and value:
        for key, child in value.items():
            tokens = value.ca.items.get(key) or [None] * 4
            comment = tokens[2].value if tokens[2] else ""
            # A comment token also holds the blank and comment lines below it: its own line is the first.
            yield from _commented_leaves(child, (*path, key), comment.splitlines()[0] if comment else "")
    elif isinstance(value, list) and any(isinstance(child, (dict, list)) for child in value):
        for index, child in enumerate(value):
            yield from _commented_leaves(child, (*path, index), comment)
    else:
        yield path, value, comment.lstrip("# ").strip()
