"""malloc tuning: whether this process keeps the memory that it frees, or returns it to the system.

Decides nothing about what is allocated. Has an effect on glibc only.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""mallopt parameters, from glibc's malloc.h."""
MMAP_THRESHOLD_BYTES = 2**18
"""Bytes from which an allocation gets its own mmap. With 1 MiB, a step of 2 x 128 tokens, whose activations are
smaller, leaves 110 MB in holes of the heap."""
RETURNED = {M_MMAP_MAX: 2**16, M_MMAP_THRESHOLD: MMAP_THRESHOLD_BYTES, M_TRIM_THRESHOLD: 2 * MMAP_THRESHOLD_BYTES}
RETAINED = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}
AS_USUAL = {M_MMAP_MAX: 2**16, M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26}
"""What glibc arrives at by itself, once it has seen tensors of 32 MiB freed."""


class FreedMemory:
    """What becomes of the memory that a run frees in host memory; `matters` where it trains there."""

    def __init__(self, *, matters: bool) -> None:
        self.matters = matters
        self.is_returned = False

    @contextlib.contextmanager
    def retained(self) -> Iterator[None]:
        """For as long as the block lasts, or until `give_back`, keep it for the next step to reuse.

        By itself, glibc returns the end of the heap and every tensor above 32 MiB when they are freed, and the kernel
        zeroes their pages anew at the next step. To retain them makes steps of GPT-2 124M 18 % faster, and those of a
        bare loop 24 % (tests/benchmarks/results/throughput.txt). The price is what lies unused in holes of the heap:
        `ALLOCATOR_RETAINED_SHARE` of toolkit.memory.budget.
        """
        if self.matters:
            _set(RETAINED)
        try:
            yield
        finally:
            if self.matters:
                _set(AS_USUAL)

    def give_back(self) -> None:
        """From now on, return it at once."""
        self.is_returned = self.matters and give_memory_back()


def give_memory_back() -> bool:
    """From now on, mmap every tensor of 256 KiB or more separately, so that freeing it returns its memory.

    glibc raises that threshold up to 32 MiB by itself as such allocations are freed; anything below it comes from the
    heap, which keeps its holes. A step's activations are mostly 1 to 32 MiB.

    With it the peak is the planned one; without it, a gigabyte more for GPT-2 124M. The price is that fresh pages are
    zeroed at each allocation, so it is for runs short of memory (tests/benchmarks/auto_under_budget.py has both).

    Returns:
        Whether the C library accepted the settings.
    """
    return _set(RETURNED)


def _set(parameters: Mapping[int, int]) -> bool:
    """Set mallopt parameters, and return what the holes of the heap hold by now; whether there is a glibc to do so."""
    try:
        library = ctypes.CDLL(None)
        mallopt, malloc_trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError):  # no such functions: macOS, musl
        return False
    mallopt.argtypes, malloc_trim.argtypes = (ctypes.c_int, ctypes.c_int), (ctypes.c_size_t,)
    taken = [mallopt(name, value) for name, value in parameters.items()]
    malloc_trim(0)
    return all(taken)
