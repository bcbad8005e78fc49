"""Parses a recipe's text into plain data, and keeps the line and column of every key and list item.

YAML 1.2, so that `5e-4` is a number and `off` a string. Duplicate keys are refused, and so are anchors: in a recipe
every value is written out in its place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from toolkit.errors import Place, Problem, RecipeError, UsageError

Path_ = tuple[str | int, ...]
"""The path to a value: ("memory", 0, "micro_batch_size")."""

COMMAND_LINE = "--set"
"""The `file` of places that are on the command line instead of in a file."""


@dataclass(frozen=True)
class Document:
    """A recipe's plain data, and where each of its keys is."""

    source: str
    text: str
    data: Mapping[str, Any]
    places: Mapping[Path_, Place]
    """The place of the key for mappings, and of the item for lists."""

    def place(self, path: Path_) -> Place:
        """The place of this value or, if it is not in the text, of the nearest value that encloses it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place(self.source, 1, 1))


def read(file: Path, *, shown_as: str | None = None) -> Document:
    """Read a recipe file.

    Raises:
        RecipeError: it is not a YAML mapping; the message has line and column.
        UsageError: there is no such file, or it is not text.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from None
    except OSError as error:
        raise UsageError(f"cannot read the recipe {file}: {error.strerror}") from None
    return parse(text, shown_as or str(file))


def parse(text: str, source: str) -> Document:
    """Parse YAML text into a document.

    Raises:
        RecipeError: it is not a YAML mapping; the message has line and column.
    """
    node = _compose(text, source)
    if not isinstance(node, MappingNode):
        found = "is empty" if node is None else "is not a mapping of keys to values"
        raise RecipeError([Problem(Place(source, 1, 1), "", f"the recipe {found}; `toolkit recipe new` writes one")])
    reader = _Reader(source)
    data = reader.value(node, ())
    if reader.problems:
        raise RecipeError(reader.problems)
    return Document(source, text, data, reader.places)


def with_override(document: Document, assignment: str) -> Document:
    """Return the document with one `a.b=c` from the command line applied; `c` is parsed as YAML.

    Raises:
        UsageError: it is not of that form, or its path goes through something that is not a mapping or a list.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {assignment}: write it as --set training.max_steps=100")
    try:
        value = parse(f"value: {text or 'null'}", COMMAND_LINE).data["value"]
    except RecipeError as error:
        raise UsageError(f"--set {assignment}: {error.problems[0].message}") from None
    return _with_value(document, key, value, assignment)


def with_value(document: Document, key: str, value: object) -> Document:
    """Return the document with one value from Python applied, at a dotted key; a path counts as its text.

    Raises:
        UsageError: a recipe cannot hold such a value, or the key is inside something that is not a mapping.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=os.fspath)
    except (TypeError, ValueError):
        raise UsageError(
            f"overrides: {key} is {value!r}; a recipe holds numbers, text, true, false, null, lists and mappings"
        ) from None
    return _with_value(document, key, json.loads(text), f"{key}={text}")


def _with_value(document: Document, key: str, value: Any, assignment: str) -> Document:
    path: Path_ = tuple(int(part) if part.isdigit() else part for part in key.strip().split("."))
    places = {kept: place for kept, place in document.places.items() if kept[: len(path)] != path}
    places[path] = Place(f"--set {assignment}", 1, 1)
    return replace(document, data=_assigned(document.data, path, value, assignment), places=places)


def _assigned(data: Any, path: Path_, value: Any, assignment: str) -> Any:
    """A copy of the data with the value at the path; missing mappings on the way are created, list items must exist."""
    if not path:
        return value
    head, *rest = path
    if isinstance(data, list):
        if not isinstance(head, int) or head >= len(data):
            raise UsageError(f"--set {assignment}: no item {head} in a list of {len(data)}, counted from 0")
        return [_assigned(item, tuple(rest), value, assignment) if i == head else item for i, item in enumerate(data)]
    if isinstance(data, str) and rest == [] and head != "plugin":
        data = {"plugin": data}  # a bare plugin name is short for {plugin: NAME}
    if data is None:
        data = {}
    if not isinstance(data, Mapping):
        raise UsageError(f"--set {assignment}: cannot set {head} inside {data!r}, which is not a mapping")
    return {**data, str(head): _assigned(data.get(str(head)), tuple(rest), value, assignment)}


def _compose(text: str, source: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    try:
        return yaml.compose(text)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        message = f"the character {error.character!r} is not allowed in YAML; remove it"
        raise RecipeError([Problem(Place(source, line, column), "", message)]) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(source, mark.line + 1, mark.column + 1) if mark else Place(source, 1, 1)
        raise RecipeError([Problem(place, "", _explain(error, text, place))]) from None
    except YAMLError as error:
        raise RecipeError([Problem(Place(source, 1, 1), "", f"not YAML: {error}")]) from None


def _explain(error: MarkedYAMLError, text: str, place: Place) -> str:
    lines = text.splitlines()
    line = lines[place.line - 1] if place.line <= len(lines) else ""
    if "\t" in line[: place.column]:
        return "YAML is indented with spaces, and this line has a tab; replace it with spaces"
    context = f" {error.context}" if error.context else ""
    return f"not YAML:{context}: {error.problem}" if context else f"not YAML: {error.problem}"


class _Reader:
    """Converts YAML nodes to plain data, recording the place of each."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.places: dict[Path_, Place] = {}
        self.problems: list[Problem] = []
        self._scalars = YAML(typ="safe", pure=True)
        self._seen: set[int] = set()

    def value(self, node: Any, path: Path_) -> Any:
        """Return the node as dict, list or scalar."""
        if node.anchor is not None:
            self._refuse(node, path, "anchors and aliases (& and *) are not supported in recipes; write the value out")
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self._item(child, (*path, index)) for index, child in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        try:
            return self._scalars.constructor.construct_object(node)
        except (YAMLError, ValueError) as error:
            self._refuse(node, path, f"not a value that a recipe can hold: {error}")
            return None

    def _mapping(self, node: MappingNode, path: Path_) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, ScalarNode) else None
            if key is None:
                self._refuse(key_node, path, "a key must be a string")
                continue
            here = (*path, key)
            if key in result:
                self._refuse(key_node, here, f"duplicate key; the first is on line {self.places[here].line}")
                continue
            self.places[here] = self._place(key_node)
            result[key] = self.value(value_node, here)
        return result

    def _item(self, node: Any, path: Path_) -> Any:
        self.places[path] = self._place(node)
        return self.value(node, path)

    def _place(self, node: Any) -> Place:
        return Place(self.source, node.start_mark.line + 1, node.start_mark.column + 1)

    def _refuse(self, node: Any, path: Path_, message: str) -> None:
        self.problems.append(Problem(self._place(node), dotted(path), message))


def dotted(path: Path_) -> str:
    """A path as people write it: memory[0].r."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
