"""Files that survive a crash: after it they are the old ones or the new ones, and nothing between."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def make_folder(folder: Path) -> None:
    """Make a folder and its parents so that a power cut cannot take their names, and with them all that they hold."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync(place.parent)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    data = json.loads(file.read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def read_json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Read a file of JSON lines; one that was cut off in its writing, or damaged since, is passed over."""
    if not file.exists():
        return
    for line in file.read_bytes().split(b"\n"):  # and not at what else counts as the end of a line in a text
        with contextlib.suppress(ValueError):
            if isinstance(entry := json.loads(line), dict):
                yield entry


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically and durably."""
    write_text(file, json.dumps(data, indent=2, sort_keys=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Replace a text file atomically and durably: after a crash it is the old one or the new one."""
    staging = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with staging.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        staging.replace(file)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync(file.parent)


def sync(path: Path) -> None:
    """Make renames in this folder, or the content of this file, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
