"""Host checks: a device that torch can use, enough disk space and memory; and the record of the environment."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from toolkit import __version__, control_group, formatting, processes
from toolkit.errors import UnavailableError
from toolkit.files import force
from toolkit.resolve import ResolvedRecipe

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
"""Errors of the operating system that are due to the disk, and are no bug."""
SIGNS_OF_THE_DISK = (*map(os.strerror, DISK_FAULTS), "unexpected pos", "file write failed", "iostream error")
"""Signs of them in messages of safetensors and torch, which pass no errno on."""
PROBE_BYTES = 32 * 2**20
STACK = ("torch", "transformers", "datasets", "accelerate", "peft", "tokenizers", "safetensors", "numpy")
"""The packages whose versions can change the numbers."""


def environment(resolved: ResolvedRecipe) -> dict[str, Any]:
    """Versions and device, for environment.json. No environment variables: they hold secrets."""
    import torch

    device = resolved.device
    plugins = {part.distribution for part in resolved.recipe.components.values()}
    return {
        "toolkit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: metadata.version(package) for package in STACK},
        "plugins": sorted(plugins),
        "processes": processes.count(),
        "threads": torch.get_num_threads(),
        "device": {
            "kind": device.kind,
            "name": device.name,
            "memory_bytes": device.memory_bytes,
            "count": device.count,
        },
    }


def check_device(resolved: ResolvedRecipe) -> None:
    """Check that torch can use the device that was detected without it.

    Raises:
        UnavailableError: there is a GPU that torch cannot use, or fewer GPUs here than processes.
    """
    import torch

    if processes.is_first() and processes.count() == 1 and resolved.device.count > 1:
        logging.getLogger("toolkit").info(
            "one of %s GPUs is used; for all: torchrun --standalone --nproc-per-node %s --no-python toolkit ...",
            resolved.device.count,
            resolved.device.count,
        )
    if resolved.device.kind == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(
            f"there is a {resolved.device.name}, and torch {torch.__version__} cannot use it; install a torch for its "
            f"driver, or set CUDA_VISIBLE_DEVICES= (empty) to train on the processor"
        )
    if resolved.device.kind == "cuda" and processes.local_rank() >= torch.cuda.device_count():
        raise UnavailableError(
            f"LOCAL_RANK is set to {processes.local_rank()}, and there are {torch.cuda.device_count()} GPUs here; "
            f"start as many processes as there are GPUs"
        )


def available_memory_bytes() -> int:
    """Memory that this process could still take: what the machine has available, or less if its container limits it."""
    import psutil

    free = int(psutil.virtual_memory().available)
    left = control_group.left_bytes()
    return free if left is None else max(0, min(free, left))


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
            f"the disk of {folder} has {formatting.size(free)} free, and this run needs about "
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
        want_of_room = free <= 2**20 or any(sign in text for sign in SIGNS_OF_THE_DISK)
        if not isinstance(error, OSError) and not want_of_room:
            raise
        cure = "free some space and give the same command" if want_of_room else "the same command tries again"
        raise UnavailableError(
            f"cannot write {what} to {folder}: {text.splitlines()[0] if text else type(error).__name__} "
            f"({formatting.size(free)} free); the checkpoints before it stand: {cure}"
        ) from error
