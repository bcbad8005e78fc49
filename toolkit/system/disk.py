"""Disk space and speed, and a disk that is full or broken, in words."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from toolkit import formatting
from toolkit.errors import UnavailableError
from toolkit.system.files import force

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
"""Errors of the operating system that are due to the disk, and are no bug."""
DISK_FAULT_MESSAGES = (*map(os.strerror, DISK_FAULTS), "unexpected pos", "file write failed", "iostream error")
"""Signs of them in messages of safetensors and torch, which pass no errno on."""
PROBE_BYTES = 32 * 2**20


def free_bytes(folder: Path) -> float:
    """Free space on this folder's disk; infinite if the disk does not say, as some network file systems do not."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else math.inf


def check_disk(folder: Path, *, checkpoint_bytes: int) -> None:
    """Check before the first step that two checkpoints fit on the disk.

    Raises:
        UnavailableError: they do not.
    """
    needed, free = 2 * checkpoint_bytes, free_bytes(folder)
    if free < needed:
        raise UnavailableError(
            f"the disk of {folder} has {formatting.size(free)} free, but this run needs about "
            f"{formatting.size(needed)} for two checkpoints; free some space or choose another folder with --runs"
        )


def seconds_to_write(folder: Path, size: int) -> float:
    """Estimate how long writing and hashing `size` bytes takes on this folder's disk, from a probe of up to 32 MiB."""
    part = min(size, PROBE_BYTES)
    content = os.urandom(part)
    begun = time.monotonic()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
        file.write(content)
        file.flush()
        force(file.fileno())
        hashlib.sha256(content)
    return (time.monotonic() - begun) * max(1.0, size / max(1, part))


@contextlib.contextmanager
def disk_faults_named(folder: Path, what: str) -> Iterator[None]:
    """Say that the disk is full or broken, instead of safetensors' and torch's `unexpected pos 832 vs 726`."""
    try:
        yield
    except UnavailableError:
        raise
    except Exception as error:
        free = free_bytes(folder)
        text = str(error)
        want_of_room = free <= 2**20 or any(sign in text for sign in DISK_FAULT_MESSAGES)
        if not isinstance(error, OSError) and not want_of_room:
            raise
        cure = "free some space and run the same command again" if want_of_room else "the same command tries again"
        raise UnavailableError(
            f"cannot write {what} to {folder}: {text.splitlines()[0] if text else type(error).__name__} "
            f"({formatting.size(free)} free); earlier checkpoints are intact: {cure}"
        ) from error
