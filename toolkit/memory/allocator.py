"""malloc tuning: how this process obtains memory from the system and returns it.

Decides nothing about what is allocated. Has an effect on glibc only.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""mallopt parameters, from glibc's malloc.h."""
MMAP_THRESHOLD_BYTES = 2**18
"""Bytes from which an allocation gets its own mmap. With 1 MiB, a step of 2 x 128 tokens, whose activations are
smaller, leaves 110 MB in holes of the heap."""


def give_memory_back() -> bool:
    """From now on, mmap every tensor of 256 KiB or more separately, so that freeing it returns its memory.

    glibc raises that threshold up to 32 MiB by itself as such allocations are freed; anything below it comes from the
    heap, which keeps its holes. A step's activations are mostly 1 to 32 MiB.

    With it the peak is the planned one; without it, a gigabyte more for GPT-2 124M. The price is that fresh pages are
    zeroed at each allocation, so it is for runs short of memory (tests/benchmarks/auto_under_budget.py has both).

    Returns:
        Whether the C library accepted the settings.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, malloc_trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError):  # no such functions: macOS, musl
        return False
    mallopt.argtypes, malloc_trim.argtypes = (ctypes.c_int, ctypes.c_int), (ctypes.c_size_t,)
    taken = mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES) and mallopt(M_TRIM_THRESHOLD, 2 * MMAP_THRESHOLD_BYTES)
    malloc_trim(0)  # return what the holes of the heap hold by now
    return bool(taken)
