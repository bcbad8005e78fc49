"""Locks between processes, held for as long as a file is open: the kernel frees those of a process that has died."""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from toolkit.system.files import make_folder, where_supported

HELD = frozenset({errno.EWOULDBLOCK, errno.EACCES})
"""Errors of flock for a lock that another process holds."""


@contextlib.contextmanager
def exclusive(file: Path, *, otherwise: str) -> Iterator[None]:
    """Wait for the lock, and hold it for as long as the block lasts.

    Args:
        file: the lock.
        otherwise: what may happen where the file system knows no locks, as a clause.
    """
    make_folder(file.parent)
    with file.open("a", encoding="utf-8") as lock:
        with where_supported(otherwise):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def lock_if_free(file: Path, *, otherwise: str) -> IO[str] | None:
    """The open file, which holds the lock until it is closed, in the processes that inherit it, too.

    Returns:
        None if another process holds it.
    """
    make_folder(file.parent)
    lock = file.open("a", encoding="utf-8")
    try:
        with where_supported(otherwise):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if error.errno in HELD:
            return None
        raise
    return lock
