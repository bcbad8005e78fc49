"""The share of the memory that a process may plan with."""

from __future__ import annotations

from toolkit.api import Device
from toolkit.system.host_memory import available_memory_bytes, resident_bytes

ALLOCATOR_RETAINED_SHARE = 0.25
"""Freed memory that the C library retains beyond the planned peak, as a share of it, unless told to return it."""


def own_share(size: int, device: Device, processes: int) -> int:
    """One process's share of `size` bytes: each process has its own GPU, but all share one CPU's memory."""
    return size if device.kind == "cuda" else size // processes


def bytes_to_be_had(device: Device, processes: int) -> int:
    """Device memory that each of a run's processes can have; on a CPU, no more than other programs leave.

    Call it before the process has allocated anything but its libraries.
    """
    share = own_share(device.memory_bytes, device, processes)
    return min(share, resident_bytes() + available_memory_bytes() // processes) if device.kind == "cpu" else share


def is_ample(planned: int, limit: int) -> bool:
    """Whether a process with this planned peak may retain what it frees, which is faster than returning it."""
    return planned * (1 + ALLOCATOR_RETAINED_SHARE) <= limit
