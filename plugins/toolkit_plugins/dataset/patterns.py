"""Finds the files that patterns match."""

from __future__ import annotations

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from toolkit.api import OptionError
from toolkit_plugins.dataset.contents import ENDINGS

MAX_FILES_LISTED = 10_000
"""At most this many files of a folder are looked at for their endings."""


def found(patterns: str | list[str], option: str) -> dict[str, Path]:
    """The files that the patterns match, each once, sorted by path, under their absolute paths without symbolic links.

    Every start of a run comes here, so a file costs two system calls and its folder a few.

    Raises:
        OptionError: a pattern matches no file, or cannot be expanded.
    """
    if not patterns:
        raise OptionError("it names no file", option=option)
    files: dict[str, Path] = {}
    folders: dict[str, str] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            files |= {_resolved(file, folders): file for file in _matches(pattern, option)}
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a NUL, or of an unknown home
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise OptionError(f"{pattern!r} cannot be looked for: {reason}", option=option) from error
    return dict(sorted(files.items(), key=lambda item: item[1]))


def _resolved(file: Path, folders: dict[str, str]) -> str:
    """As `Path.resolve`; `folders` are those that are resolved already."""
    folder, name = os.path.split(file)
    if name in ("", "..") or file.is_symlink():
        return os.path.realpath(file)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)  # noqa: PTH118 - a Path for each file costs more than its system calls


def _matches(pattern: str, option: str) -> list[Path]:
    place = Path(pattern).expanduser()
    matches = [path for path in _expanded(place) if path.is_file()]
    if matches:
        return matches
    if place.is_dir():
        raise OptionError(f"{pattern} is a folder; name its files, as in {place / '**' / _usual(place)}", option=option)
    if place.exists():
        raise OptionError(
            f"{pattern} is not a regular file; write what comes out of a pipe or a device into one", option=option
        )
    raise OptionError(f"no file matches {pattern!r} (looked in {Path.cwd()})", option=option)


def _expanded(pattern: Path) -> Iterator[Path]:
    """The paths that a pattern matches; a part that is the name of an existing file or folder is taken literally."""
    places = [Path(pattern.anchor)]
    parts = pattern.parts[1:] if pattern.anchor else pattern.parts
    for part in parts:
        places = list(itertools.chain.from_iterable(_step(place, part) for place in places))
    return iter(places)


def _step(place: Path, part: str) -> Iterator[Path]:
    if (place / part).exists():
        return iter([place / part])
    if not glob.has_magic(part):
        return iter(())
    # Brackets may be a character set or part of a name: `corpus [v1]*` is tried as both.
    names = set(_names(part, place))
    if "[" in part:
        names.update(_names(part.replace("[", "[[]"), place))
    return itertools.chain([place] if part == "**" else [], (place / name for name in names))


def _names(part: str, place: Path) -> list[str]:
    return glob.glob(part, root_dir=place, recursive=True)  # noqa: PTH207 - Path.glob matches hidden files as well


def _usual(folder: Path) -> str:
    """The pattern for the kind of files that a folder has most of."""
    names = (file.name.lower() for file in itertools.islice(folder.rglob("*"), MAX_FILES_LISTED))
    endings = Counter(ending for name in names for ending in ENDINGS if f"{name}.".find(f"{ending}.") > 0)
    return f"*{endings.most_common(1)[0][0]}" if endings else "*.txt"
