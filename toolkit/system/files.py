"""Atomic, durable file operations: after a crash a file is the old one or the new one, and nothing in between.

Not every file system supports all that this takes. gcsfuse, SMB and others refuse to change modes, to fsync a folder,
to lock, or to rename a folder: then the work goes on without it, and the lost guarantee is reported once
(`where_supported`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NOT_SUPPORTED = frozenset(
    {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK, errno.ENODEV, errno.EBADF}
)
"""Errors of a file system that lacks a feature; a disk that is full or broken gives others."""
CHMOD_NOT_SUPPORTED = frozenset({errno.EPERM, errno.EACCES})
"""Also meant so by chmod, where all files belong to whoever mounted the file system."""
FOLDER_RENAME_NOT_SUPPORTED = frozenset({errno.EMFILE, errno.EXDEV, errno.EPERM})
"""Also meant so by renaming a folder, where a folder is only a prefix of names: gcsfuse gives EMFILE."""
FOLDER_OPEN_NOT_SUPPORTED = frozenset({errno.EISDIR, errno.EACCES})
"""Also meant so by opening a folder."""
NOT_DURABLE = "a power cut may lose the newest checkpoint"
_told: set[str] = set()


@contextlib.contextmanager
def where_supported(consequence: str, besides: frozenset[int] = frozenset()) -> Iterator[None]:
    """Do without what the file system does not support, and warn once of the consequence.

    Args:
        consequence: the lost guarantee, as a clause: "a power cut may lose the newest checkpoint".
        besides: further error numbers that mean the same here.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_SUPPORTED | besides:
            raise
        if consequence not in _told:
            _told.add(consequence)
            logging.getLogger("toolkit").warning("the file system reports %r: %s", error.strerror, consequence)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents durably: a power cut cannot take their names, and with them their content."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # by a file system that takes no folders, such as /proc
        raise PermissionError(errno.EPERM, "no folder can be made there", error.filename) from None
    for place in missing:
        sync(place.parent)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ValueError: it holds something else.
    """
    data = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds no JSON object")
    return data


def read_json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Read a file of JSON lines, skipping any that was cut off as it was written, or damaged since."""
    if not file.exists():
        return
    for line in file.read_bytes().split(b"\n"):  # and not at the other line boundaries of str.splitlines
        with contextlib.suppress(ValueError):
            if isinstance(entry := json.loads(line), dict):
                yield entry


def cut_torn_line(file: Path) -> None:
    """Cut off a last line without an end, of which a crash or a full disk has kept the rest."""
    with file.open("rb+") as open_file:
        size = open_file.seek(0, os.SEEK_END)
        if size == 0:
            return
        open_file.seek(size - 1)
        if open_file.read(1) != b"\n":
            open_file.seek(0)
            open_file.truncate(open_file.read().rfind(b"\n") + 1)


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically and durably."""
    write_text(file, json.dumps(data, indent=2, sort_keys=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Replace a text file atomically and durably."""
    staging = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with staging.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            force(out.fileno())
        staging.replace(file)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync(file.parent)


def sync(path: Path) -> None:
    """Fsync a folder or a file, so that renames in it, or its content, survive a power cut."""
    with where_supported(NOT_DURABLE, FOLDER_OPEN_NOT_SUPPORTED):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def force(descriptor: int) -> None:
    """Fsync an open file."""
    with where_supported(NOT_DURABLE):
        os.fsync(descriptor)


def set_mode(file: Path, mode: int) -> None:
    """Set a file's permissions."""
    with where_supported(
        "it sets the permissions of the run's files, so other users may be unable to read them", CHMOD_NOT_SUPPORTED
    ):
        file.chmod(mode)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder's content without modes and times, which a file system may refuse to set."""
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
        else:
            shutil.copyfile(path, copy)


def move_folder(source: Path, target: Path, *, last: str | None = None) -> None:
    """Rename a folder to a free name: atomically, or file by file if the file system cannot.

    Args:
        source: the folder.
        target: its new name, on the same file system.
        last: the file to be moved after all others, whose absence marks the folder as incomplete.
    """
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED | FOLDER_RENAME_NOT_SUPPORTED:
            raise
        files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda file: (str(file) == last, file)):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            (source / file).replace(target / file)
        shutil.rmtree(source)
