"""What memory the process holds, written where it outlives the process.

The kernel ends a process that has no memory left without a word. So the readings go into a file that is mapped into
memory: a reading costs no file operation, and is there after the kill. The next start of the run looks at it
(`recovery.killed_for_want_of_memory`).
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
"""Of the first process; the others of a run write beside it, `memory.1` and so on."""
LAYOUT = struct.Struct("<QQ")
SECONDS = 0.1
"""Between two readings."""
KEPT = 0.25
"""Share of the planned memory that the C library keeps beside it, of what was freed, unless it gives that back."""
SHORT = 0.5
"""Of a process without a plan: holding this share of what it may have, it is to give back what it frees."""
NEAR = 0.9
"""A process that held this share of what it could have was near the limit."""


@dataclass(frozen=True)
class Reading:
    """The reading at which a process was nearest to its limit."""

    resident: int
    """Bytes that it held in memory."""
    limit: int
    """Bytes that it could have held: those, and what was still free then."""

    def share(self) -> float:
        """Of what it could have held."""
        return self.resident / self.limit

    @property
    def is_near_the_limit(self) -> bool:
        """Whether little was left."""
        return self.share() >= NEAR


def resident_bytes() -> int:
    """What this process holds in memory now."""
    return int(psutil.Process().memory_info().rss)


def own_share(size: int, device: Device, processes: int) -> int:
    """Of this much memory, what one of the run's processes may take: each has a GPU of its own, all one processor."""
    return size if device.kind == "cuda" else size // processes


def bytes_to_be_had(device: Device, processes: int) -> int:
    """What each of a run's processes can have of its device's memory: of a processor's, what other programs leave.

    To be asked before the process has taken anything but the libraries.
    """
    share = own_share(device.memory_bytes, device, processes)
    return min(share, resident_bytes() + available_memory_bytes() // processes) if device.kind == "cpu" else share


def peak_resident_bytes() -> int:
    """The most that this process has held in memory."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts it for us
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resident_bytes()


def peak_bytes(device_kind: str) -> int:
    """The most that this process has held of the memory that a plan is about: the GPU's, or the processor's."""
    if device_kind != "cuda":
        return peak_resident_bytes()
    import torch

    free, total = torch.cuda.mem_get_info()
    beside = total - free - torch.cuda.memory_reserved()  # the context, and whatever others hold
    return torch.cuda.max_memory_allocated() + beside


def last_reading(folder: Path) -> Reading | None:
    """What was left by those of the processes before that were ended, of which it was nearest to its limit."""
    contents = [file.read_bytes() for file in _files(folder)]
    readings = [Reading(*LAYOUT.unpack(content)) for content in contents if len(content) == LAYOUT.size]
    # One whose limit is 0 was ended before it had read anything.
    return max((reading for reading in readings if reading.limit), key=Reading.share, default=None)


def forget_readings(folder: Path) -> None:
    """Remove what the processes before have left; a power cut must not bring it back to be blamed on the next."""
    for file in _files(folder):
        file.unlink()


def _files(folder: Path) -> list[Path]:
    return [*folder.glob(FILE), *folder.glob(f"{FILE}.[0-9]*")]


def is_ample(planned: int, limit: int) -> bool:
    """Whether a process with this planned peak may keep what it frees, which is faster than to give it back."""
    return planned * (1 + KEPT) <= limit


@contextlib.contextmanager
def watched(
    folder: Path, *, limit: int, planned: int | None, when_short: Callable[[], object], rank: int = 0
) -> Iterator[None]:
    """Read the memory of this process many times a second, for as long as the work lasts.

    What it has read stays for the next start only if the process is ended from outside.

    Args:
        folder: the run directory.
        limit: bytes that the run may take, or fewer where there are fewer.
        planned: its planned peak.
        when_short: is called once, when the process is to give back what it frees: at once where the plan says that
            it will be near the limit, because what lies in the heap's holes by then would stay there.
        rank: the number of this process among those of the run.
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
            # The nearest and not the last: the kernel kills at a peak, which lasts less than what lies between two.
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
