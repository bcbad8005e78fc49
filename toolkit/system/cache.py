"""The cache: what can be regenerated. An entry is complete or absent, and leftovers of killed processes are removed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from toolkit.errors import OptionError, RecipeError, UnavailableError
from toolkit.formatting import counted
from toolkit.system.files import make_folder, move_folder, sync

STAGING_PREFIX = ".staging-"
LOCK_FILE = "lock"
UNFINISHED_PREFIX = ".unfinished-"
UNFINISHED_DAYS = 14
"""For how long unfinished work is kept that nobody goes on with."""
ERRORS_WITHOUT_FILENAME = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
"""Errors of writing to an open file, which name no file."""


def cache_folder() -> Path:
    """TOOLKIT_CACHE, or pretrain-toolkit in the user's cache folder.

    Raises:
        UnavailableError: there is neither, as for a user without a home folder.
    """
    if chosen := os.environ.get("TOOLKIT_CACHE"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "pretrain-toolkit"
    try:
        return Path.home() / ".cache" / "pretrain-toolkit"
    except RuntimeError as error:
        raise UnavailableError("this user has no home directory; set TOOLKIT_CACHE to a cache folder") from error


@contextlib.contextmanager
def entry_made(entry: Path) -> Iterator[Path]:
    """Yield a path at which to write a cache entry, a file or a folder; when the `with` block ends, it is the entry.

    A file is forced to disk; for the files in a folder, that is up to whoever writes them. If another process has
    finished the same folder first, its entry stays.

    Raises:
        UnavailableError: the cache cannot be written.
    """
    with staging_folder(entry.parent) as staging, refusals_explained(entry.parent):
        made = staging / entry.name
        yield made
        if made.is_file():  # otherwise a power cut may leave an empty file of that name
            sync(made)
        try:
            move_folder(made, entry) if made.is_dir() else made.replace(entry)
        except OSError:
            if not entry.is_dir():
                raise
        sync(entry.parent)


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """Yield a folder inside `parent` for unfinished work; it is removed when the `with` block ends.

    Raises:
        UnavailableError: the cache cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with refusals_explained(parent):
            make_folder(parent)
            with _gate(parent):
                staging = Path(tempfile.mkdtemp(dir=parent, prefix=STAGING_PREFIX))
                stack.callback(shutil.rmtree, staging, ignore_errors=True)
                _locked(stack.enter_context((staging / LOCK_FILE).open("a")))
        yield staging


@contextlib.contextmanager
def unfinished_work(entry: Path) -> Iterator[Path]:
    """Yield the folder where work on a cache entry is kept until the entry is made, with what killed processes did.

    Whoever writes in it forces it to disk. One process at a time may do so.

    Raises:
        UnavailableError: the cache cannot be written; what is done stays.
    """
    folder = entry.with_name(f"{UNFINISHED_PREFIX}{entry.name}")
    with refusals_explained(entry.parent):
        make_folder(folder)
    try:
        yield folder
    except (OptionError, RecipeError):  # with other options it is other work
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except UnavailableError as error:
        if done := len(list(folder.iterdir())):
            message = f"{error.message}; {counted(done, 'finished part')} of the work will not be done again"
            raise UnavailableError(message, option=error.option) from error
        raise
    shutil.rmtree(folder, ignore_errors=True)


def kept_bytes(file: Path) -> bytes | None:
    """What `bytes_kept` cached in this file; None if it is missing or damaged."""
    with contextlib.suppress(OSError):
        digest, _, content = file.read_bytes().partition(b"\n")
        if digest == _digest(content):
            return content
    return None


def bytes_kept(file: Path, make: Callable[[], bytes]) -> bytes:
    """What an earlier process cached in this file; `make` produces it if it is missing or damaged.

    Raises:
        UnavailableError: the cache cannot be written.
    """
    if (kept := kept_bytes(file)) is not None:
        return kept
    content = make()
    with entry_made(file) as staging:
        staging.write_bytes(_digest(content) + b"\n" + content)
    return content


def kept_text(file: Path) -> str | None:
    """The text that `text_kept` cached in this file; None if it is missing or damaged."""
    return None if (kept := kept_bytes(file)) is None else kept.decode()


def text_kept(file: Path, make: Callable[[], str]) -> str:
    """As `bytes_kept`, for a text."""
    return bytes_kept(file, lambda: make().encode()).decode()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def remove_abandoned(cache: Path) -> None:
    """Remove the staging folders of dead processes, whose locks nobody holds, and old unfinished work.

    What cannot be removed stays.
    """
    for unfinished in cache.glob(f"**/{UNFINISHED_PREFIX}*"):
        with contextlib.suppress(OSError):
            is_old = time.time() - unfinished.stat().st_mtime > UNFINISHED_DAYS * 24 * 3600
            if is_old or unfinished.with_name(unfinished.name.removeprefix(UNFINISHED_PREFIX)).exists():
                shutil.rmtree(unfinished, ignore_errors=True)
    for parent in {staging.parent for staging in cache.glob(f"**/{STAGING_PREFIX}*")}:
        with contextlib.suppress(OSError), _gate(parent):
            for staging in parent.glob(f"{STAGING_PREFIX}*"):
                with (staging / LOCK_FILE).open("a") as lock:
                    if _locked(lock):
                        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _gate(parent: Path) -> Iterator[None]:
    """Admit one process at a time: a folder that is created but not yet locked looks abandoned."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a file system without locks, where nothing counts as abandoned
            descriptor = os.open(parent, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _locked(file: IO[str]) -> bool:
    """Lock a file for as long as it is open; False if another process holds it, or locks are not supported."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def refusals_explained(folder: Path) -> Iterator[None]:
    """Mention TOOLKIT_CACHE if the operating system refuses a write to this folder of the cache."""
    try:
        yield
    except OSError as error:
        if not _is_about(folder, error):
            raise
        raise UnavailableError(
            f"cannot write to the cache {folder}: {error.strerror or error}; free some space, or set TOOLKIT_CACHE to "
            f"a writable folder"
        ) from error


def _is_about(folder: Path, error: OSError) -> bool:
    """Whether the error's file is in the folder, or above it; the error of a full disk names none."""
    if not isinstance(error.filename, str | bytes):
        return error.errno in ERRORS_WITHOUT_FILENAME
    place = Path(os.fsdecode(error.filename))
    return place.is_relative_to(folder) or folder.is_relative_to(place)
