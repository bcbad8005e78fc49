"""The source code that a class depends on and that its author may change without a new version."""

from __future__ import annotations

import ast
import contextlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

OURS = ("toolkit", "toolkit_plugins")
"""Packages whose changes come with a version."""
INSTALLED = frozenset({"site-packages", "dist-packages"})


def source_code_of(kind: type) -> str:
    """Source of a class's module, and of the modules of the same author that it imports, anywhere in its code.

    These are looked for beside it, in the folder above, and on `sys.path`, except where packages are installed.
    """
    try:
        module = sys.modules[kind.__module__]
        own = inspect.getsource(module)
    except (OSError, TypeError, KeyError):
        return ""
    file = Path(module.__file__ or "").resolve()
    if kind.__module__.partition(".")[0] in OURS or _is_installed(file):
        return own
    return "".join([own, *(text for _, text in _imported(own, file, {file}))])


def _imported(source: str, file: Path, seen: set[Path]) -> Iterator[tuple[Path, str]]:
    """The modules that a source imports, and those that they import, each once, with their texts."""
    for found in _named(source, file):
        if found in seen:
            continue
        seen.add(found)
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = found.read_text(encoding="utf-8")
            yield found, text
            yield from _imported(text, found, seen)


def _named(source: str, file: Path) -> Iterator[Path]:
    """The files of the modules that a source imports by name, as far as they are its author's."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # where it is imported, that is told
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(_folders(file), alias.name)
        elif isinstance(node, ast.ImportFrom):
            folders = [file.parents[node.level - 1]] if node.level else _folders(file)
            for alias in node.names:  # a module, or something in one
                yield from _files(folders, ".".join(filter(None, (node.module, alias.name))))


def _folders(file: Path) -> list[Path]:
    known = (Path(entry).resolve() for entry in sys.path)
    return [*file.parents[:2], *(folder for folder in known if not _is_installed(folder))]


def _is_installed(path: Path) -> bool:
    """Whether it comes with Python or with a package: these have versions."""
    return not INSTALLED.isdisjoint(path.parts) or path.is_relative_to(Path(sysconfig.get_path("stdlib")).resolve())


def _files(folders: list[Path], name: str) -> Iterator[Path]:
    """The module of a dotted name, and the packages around it, in the first of the folders that has any of them."""
    parts = name.split(".")
    if parts[0] in OURS:
        return
    for folder in folders:
        places = [folder.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
        candidates = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
        if found := [file for file in candidates if file.is_file()]:
            yield from found
            return
