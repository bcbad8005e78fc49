"""Memory readings of the process that survive it, to recognize the OOM killer.

The OOM killer leaves no message. So the readings go into a memory-mapped file: a reading costs no file operation, and
is still there after the kill. The next attempt looks at it (`recovery.killed_for_want_of_memory`).
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from toolkit.api import Device
from toolkit.files import where_supported
from toolkit.host import available_memory_bytes

FILE = "memory"
"""File of the main process; the other ranks write `memory.1` and so on beside it."""
LAYOUT = struct.Struct("<QQ")
SECONDS = 0.1
"""Interval between readings."""
KEPT = 0.25
"""Freed memory that the C library retains beyond the planned peak, as a share of it, unless told to return it."""
SHORT = 0.5
"""Without a plan, a process that holds this share of its limit starts to return what it frees."""
NEAR = 0.9
"""A process that held this share of what it could have held was near its limit."""


@dataclass(frozen=True)
class Reading:
    """The reading at which a process was nearest to its limit."""

    resident: int
    """Resident bytes."""
    limit: int
    """Bytes that it could have held: the resident ones, and what was still free at the time."""

    def share(self) -> float:
        """Resident share of the limit."""
        return self.resident / self.limit

    @property
    def is_near_the_limit(self) -> bool:
        """Whether little was left."""
        return self.share() >= NEAR


def resident_bytes() -> int:
    """Resident set size of this process now."""
    return int(psutil.Process().memory_info().rss)


def own_share(size: int, device: Device, processes: int) -> int:
    """One process's share of `size` bytes: each process has its own GPU, but all share one CPU's memory."""
    return size if device.kind == "cuda" else size // processes


def bytes_to_be_had(device: Device, processes: int) -> int:
    """Device memory that each of a run's processes can have; on a CPU, no more than other programs leave.

    Call it before the process has allocated anything but its libraries.
    """
    share = own_share(device.memory_bytes, device, processes)
    return min(share, resident_bytes() + available_memory_bytes() // processes) if device.kind == "cpu" else share


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


def last_reading(folder: Path) -> Reading | None:
    """Of the readings that killed processes of the last attempt left, the one nearest to its limit."""
    contents = [file.read_bytes() for file in _files(folder)]
    readings = [Reading(*LAYOUT.unpack(content)) for content in contents if len(content) == LAYOUT.size]
    # A limit of 0: killed before its first reading.
    return max((reading for reading in readings if reading.limit), key=Reading.share, default=None)


def forget_readings(folder: Path) -> None:
    """Remove earlier processes' readings: one that a power cut brought back would be blamed on the next attempt."""
    for file in _files(folder):
        file.unlink()


def _files(folder: Path) -> list[Path]:
    return [*folder.glob(FILE), *folder.glob(f"{FILE}.[0-9]*")]


def is_ample(planned: int, limit: int) -> bool:
    """Whether a process with this planned peak may retain what it frees, which is faster than returning it."""
    return planned * (1 + KEPT) <= limit


@contextlib.contextmanager
def watched(
    folder: Path, *, limit: int, planned: int | None, when_short: Callable[[], object], rank: int = 0
) -> Iterator[None]:
    """Sample the memory of this process ten times a second, for as long as the work lasts.

    The reading remains for the next attempt only if the process is killed.

    Args:
        folder: the run directory.
        limit: bytes that the process may take, or fewer if fewer are free.
        planned: its planned peak.
        when_short: is called once, when the process has to start returning what it frees: right away if the plan
            comes near the limit, because what is in the holes of the heap by a later call would stay there.
        rank: the rank of this process in the run.
    """
    short_at = SHORT if planned is None else NEAR
    ample = planned is None or is_ample(planned, limit)
    if not ample:
        when_short()
    done = threading.Event()
    path = folder / (f"{FILE}.{rank}" if rank else FILE)
    with path.open("w+b") as file:
        file.write(bytes(LAYOUT.size))
        file.flush()
        readings = mmap.mmap(-1, LAYOUT.size)
        with where_supported("a kill for want of memory will not be seen by the next start"):
            readings = mmap.mmap(file.fileno(), LAYOUT.size)

    def read() -> None:
        fullest, watching = 0.0, ample
        while True:
            resident = resident_bytes()
            within = resident + available_memory_bytes()
            # The highest and not the last: the kernel kills at a peak, which may be shorter than the interval.
            if resident / within >= fullest:
                fullest = resident / within
                LAYOUT.pack_into(readings, 0, resident, within)
            if watching and resident >= short_at * min(within, limit):
                watching = False
                when_short()
            if done.wait(SECONDS):
                return

    thread = threading.Thread(target=read, name="memory-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        readings.close()
        with contextlib.suppress(OSError):
            path.unlink()
