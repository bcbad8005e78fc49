"""Readings of the memory that this process holds and could still take."""

from __future__ import annotations

from pathlib import Path

import psutil

from toolkit.system import control_group


def available_memory_bytes() -> int:
    """Memory that this process could still take: what the machine has available, or less if its container limits it."""
    free = int(psutil.virtual_memory().available)
    left = control_group.left_bytes()
    return free if left is None else max(0, min(free, left))


def resident_bytes() -> int:
    """Resident set size of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Peak resident set size of this process; the present one where the system does not track it."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux tracks it
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resident_bytes()


def peak_bytes(device_kind: str) -> int:
    """Peak of this process in the memory that a plan is about: the GPU's, or else the host's."""
    if device_kind != "cuda":
        return peak_resident_bytes()
    import torch

    free, total = torch.cuda.mem_get_info()
    beside = total - free - torch.cuda.memory_reserved()  # the CUDA context, and whatever other processes hold
    return torch.cuda.max_memory_allocated() + beside
