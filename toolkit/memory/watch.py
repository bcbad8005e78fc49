"""Memory readings of the process that survive it, to recognize the OOM killer.

The OOM killer leaves no message. So the readings go into a memory-mapped file: a reading costs no file operation, and
is still there after the kill. The next attempt looks at it (`limits.killed_for_want_of_memory`).
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.memory.allocator import FreedMemory
from toolkit.memory.budget import is_ample
from toolkit.system.files import where_supported
from toolkit.system.host_memory import available_memory_bytes, resident_bytes
from toolkit.system.threads import meanwhile

READINGS_FILE = "memory"
"""File of the main process; the other ranks write `memory.1` and so on beside it."""
READING_LAYOUT = struct.Struct("<QQ")
READING_INTERVAL_SECONDS = 0.1
"""Interval between readings."""
SHORT_OF_MEMORY_SHARE = 0.5
"""Without a plan, a process that holds this share of its limit starts to return what it frees."""
NEAR_LIMIT_SHARE = 0.9
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
        return self.share() >= NEAR_LIMIT_SHARE


def last_reading(folder: Path) -> Reading | None:
    """Of the readings that killed processes of the last attempt left, the one nearest to its limit."""
    contents = [file.read_bytes() for file in _files(folder)]
    readings = [Reading(*READING_LAYOUT.unpack(content)) for content in contents if len(content) == READING_LAYOUT.size]
    # A limit of 0: killed before its first reading.
    return max((reading for reading in readings if reading.limit), key=Reading.share, default=None)


def forget_readings(folder: Path) -> None:
    """Remove earlier processes' readings: one that a power cut brought back would be blamed on the next attempt."""
    for file in _files(folder):
        file.unlink()


def _files(folder: Path) -> list[Path]:
    return [*folder.glob(READINGS_FILE), *folder.glob(f"{READINGS_FILE}.[0-9]*")]


@contextlib.contextmanager
def watched(folder: Path, *, limit: int, planned: int | None, freed: FreedMemory, rank: int = 0) -> Iterator[None]:
    """Sample the memory of this process ten times a second, for as long as the work lasts.

    The reading remains for the next attempt only if the process is killed.

    Args:
        folder: the run directory.
        limit: bytes that the process may take, or fewer if fewer are free.
        planned: its planned peak.
        freed: is given back from when the process has to: right away if the plan comes near the limit, because what is
            in the holes of the heap by a later call would stay there.
        rank: the rank of this process in the run.
    """
    short_at = SHORT_OF_MEMORY_SHARE if planned is None else NEAR_LIMIT_SHARE
    ample = planned is None or is_ample(planned, limit)
    if not ample:
        freed.give_back()
    path = folder / (f"{READINGS_FILE}.{rank}" if rank else READINGS_FILE)
    with path.open("w+b") as file:
        file.write(bytes(READING_LAYOUT.size))
        file.flush()
        readings = mmap.mmap(-1, READING_LAYOUT.size)
        with where_supported("the next start cannot tell whether memory ran out"):
            readings = mmap.mmap(file.fileno(), READING_LAYOUT.size)

    fullest, watching = 0.0, ample

    def read() -> None:
        nonlocal fullest, watching
        resident = resident_bytes()
        within = resident + available_memory_bytes()
        # The highest and not the last: the kernel kills at a peak, which may be shorter than the interval.
        if resident / within >= fullest:
            fullest = resident / within
            READING_LAYOUT.pack_into(readings, 0, resident, within)
        if watching and resident >= short_at * min(within, limit):
            watching = False
            freed.give_back()

    try:
        retained = freed.retained() if ample else contextlib.nullcontext()
        with retained, meanwhile(read, seconds=READING_INTERVAL_SECONDS, name="memory-watch"):
            yield
    finally:
        readings.close()
        with contextlib.suppress(OSError):
            path.unlink()
