"""The file systems of runs and caches: room, and whether fsync, locks and renames work there."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from toolkit import formatting
from toolkit.doctor.examination import Finding
from toolkit.doctor.host import CLOCK_SECONDS
from toolkit.system.disk import free_bytes
from toolkit.system.files import (
    FOLDER_OPEN_NOT_SUPPORTED,
    FOLDER_RENAME_NOT_SUPPORTED,
    NOT_DURABLE,
    NOT_SUPPORTED,
)

LITTLE_ROOM_BYTES = 2 * 10**9
NETWORK = ("nfs", "cifs", "smb", "9p", "lustre", "gpfs", "ceph", "beegfs", "afs", "fuse", "virtiofs")
"""Beginnings of the names of file systems that are somewhere else, or a program's."""
FAMILIES_IN_MEMORY = ("tmpfs", "ramfs")


def folder(
    path: Path, *, variable: str, holds: str, lasting: bool = True, mounts: Path = Path("/proc/self/mountinfo")
) -> Iterator[Finding]:
    """Try what a run does in a folder; nothing is left behind.

    Args:
        path: the folder, which need not exist yet.
        variable: the option or environment variable that names another one.
        holds: what would be in it, in the plural: "runs".
        lasting: whether it must outlive the container and the machine's next start.
        mounts: the list of mounts.
    """
    place = nearest_existing(path)
    elsewhere = f"set {variable} to another folder"
    mount, kind = _mounted(place.resolve(), mounts)
    try:
        trial = Path(tempfile.mkdtemp(prefix=".doctor-", dir=place))
    except OSError as error:
        yield Finding("problem", f"nothing can be written to {place}: {error.strerror}", elsewhere)
        return
    try:
        free = free_bytes(place)
        yield _room(place, free, kind, elsewhere)
        yield from _abilities(trial, kind)
    except OSError as error:
        yield Finding("problem", f"{place} does not take a file: {error.strerror}", f"free some space, or {elsewhere}")
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    if lasting and kind in FAMILIES_IN_MEMORY:
        yield Finding(
            "note", f"{mount} is in memory: {holds} are lost at the next start, and count as memory", elsewhere
        )
    if lasting and kind == "overlay":
        yield Finding(
            "note",
            f"{place} is in the container itself: {holds} are removed with it",
            f"mount a volume, and {elsewhere} on it",
        )


def nearest_existing(path: Path) -> Path:
    """The folder itself, or the nearest above it that exists: there it would be made."""
    whole = path.absolute()
    return next((each for each in (whole, *whole.parents) if each.exists()), Path("/"))


def _room(place: Path, free: float, kind: str, elsewhere: str) -> Finding:
    shown = f"{place} ({kind})" if kind else str(place)
    if free < LITTLE_ROOM_BYTES:
        return Finding("note", f"{shown} has {formatting.size(free)} free", f"free some space, or {elsewhere}")
    room = f"has {formatting.size(free)} free" if free < float("inf") else "does not say how much is free"
    return Finding("ok", f"{shown} {room}")


def _abilities(trial: Path, kind: str) -> Iterator[Finding]:
    file = trial / "file"
    with file.open("wb") as out:
        out.write(os.urandom(4096))
        out.flush()
        yield from _tried(lambda: os.fsync(out.fileno()), "fsync", NOT_DURABLE)
        yield from _tried(
            lambda: fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB), "locks", "two commands can work on one run"
        )
    skew = file.stat().st_mtime - time.time()
    descriptor = os.open(trial, os.O_RDONLY)
    try:
        yield from _tried(lambda: os.fsync(descriptor), "fsync of a folder", NOT_DURABLE, FOLDER_OPEN_NOT_SUPPORTED)
    finally:
        os.close(descriptor)
    inner = trial / "folder"
    inner.mkdir()
    yield from _tried(
        lambda: inner.rename(trial / "renamed"),
        "renaming of folders",
        "a checkpoint becomes complete file by file, the manifest last",
        FOLDER_RENAME_NOT_SUPPORTED,
    )
    if kind.startswith(NETWORK):
        yield Finding(
            "note",
            f"{kind} is a network or user-space file system: another host may see files late, and its locks may hold "
            f"on one host only",
            "start each run on one host at a time; a local disk makes saves faster",
        )
    if abs(skew) > CLOCK_SECONDS:
        yield Finding(
            "note", f"its clock and this machine's differ by {formatting.duration(abs(skew))}", "set both by NTP"
        )


def _tried(
    attempt: Callable[[], object], what: str, lost: str, besides: frozenset[int] = frozenset()
) -> Iterator[Finding]:
    """The finding that the file system lacks this; none if it does not."""
    try:
        attempt()
    except OSError as error:
        if error.errno not in NOT_SUPPORTED | besides | {errno.EPERM, errno.EACCES}:
            raise
        cure = "nothing, if you can live with that; or a folder on a local disk"
        yield Finding("note", f"no {what} here ({error.strerror}): {lost}", cure)


def _mounted(place: Path, mounts: Path) -> tuple[Path, str]:
    """The mount that a folder is on, and the kind of its file system; "" if that is not known."""
    best, kind = Path("/"), ""
    if not mounts.exists():
        return best, kind
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = Path(fields[4].encode().decode("unicode_escape"))  # a blank is \040 there
        if place.is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, kind = point, after.split()[0]
    return best, kind
