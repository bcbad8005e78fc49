"""One process at a time at a piece of work that several want done: the others wait, and see how far it is.

The lock is the kernel's, so that of a dead process is free at once. Its file says who holds it and how far that process
has come; who waits gives up only when it comes no further.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from toolkit.errors import UnavailableError
from toolkit.formatting import duration
from toolkit.system.files import make_folder, where_supported

SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_BETWEEN_WORDS = 1.0
HELD = frozenset({errno.EWOULDBLOCK, errno.EACCES})
"""Errors of flock for a lock that another process holds."""


@dataclass(frozen=True)
class Holder:
    """The process that does the work, and how far it is."""

    process: int
    host: str
    phase: str = ""
    done: int = 0
    total: int | None = None
    unit: str = ""

    def __str__(self) -> str:
        here = self.host == socket.gethostname()
        return f"process {self.process}" + (f" on {self.host}" * (not here))


Tell = Callable[[str, int, int | None, str], None]
"""Called by the holder with its phase, how much of it is done, of how much, and the unit."""


@contextlib.contextmanager
def turn(file: Path, *, wait: Callable[[Holder | None], object], patience: float) -> Iterator[Tell]:
    """Wait until no other process holds this lock, and hold it for as long as the block lasts.

    Where the file system knows no locks, nobody waits.

    Args:
        file: the lock, which exists only while somebody holds it, or was killed.
        wait: called repeatedly while another process holds it; with None where that one is not known.
        patience: seconds to wait for a process that makes no progress.

    Raises:
        UnavailableError: the process that holds it makes none.
    """
    make_folder(file.parent)
    seen, since = "", time.monotonic()
    while (lock := _locked(file)) is None:
        with contextlib.suppress(OSError):
            words = file.read_text(encoding="utf-8")
            if words != seen:
                seen, since = words, time.monotonic()
        holder = _holder(seen)
        if time.monotonic() - since > patience:
            raise UnavailableError(
                f"{holder or 'another process'} is preparing the same data, and has made no progress for "
                f"{duration(patience)}; end it, or wait longer with training.ddp_timeout"
            )
        wait(holder)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    with lock:
        try:
            yield _teller(lock)
        finally:
            file.unlink(missing_ok=True)


def _locked(file: Path) -> IO[str] | None:
    """The open and locked file; None if another process holds it."""
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(file.open("a+", encoding="utf-8"))
        with where_supported("processes that want the same data may each prepare it"):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in HELD:
                    return None
                raise
        try:
            if os.fstat(lock.fileno()).st_ino != file.stat().st_ino:
                return None  # its holder has removed it in between
        except FileNotFoundError:
            return None
        stack.pop_all()
        return lock


def _teller(lock: IO[str]) -> Tell:
    holder, told = Holder(os.getpid(), socket.gethostname()), -SECONDS_BETWEEN_WORDS

    def tell(phase: str, done: int = 0, total: int | None = None, unit: str = "") -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < SECONDS_BETWEEN_WORDS:
            return
        told = now
        with contextlib.suppress(OSError):  # on a full disk, which shows where it matters
            lock.seek(0)
            lock.truncate()
            json.dump(asdict(replace(holder, phase=phase, done=done, total=total, unit=unit)), lock)
            lock.flush()

    tell("")
    return tell


def _holder(words: str) -> Holder | None:
    try:
        return Holder(**json.loads(words))
    except (ValueError, TypeError):  # being written, or by another version
        return None
