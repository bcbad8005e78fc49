"""How this process gets memory from the system and gives it back; what Linux's C library can be told about it.

Decides nothing about what is allocated. Elsewhere than on glibc nothing is changed.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's malloc.h."""
MAPPED_FROM = 2**18
"""Bytes from which an allocation is mapped by itself. From 1 MiB on, a step of 2 x 128 tokens, whose activations are
smaller, leaves 110 MB in the holes of the heap."""


def give_memory_back() -> bool:
    """From now on, let every tensor of 256 KiB or more be memory of its own, which ends with the tensor.

    glibc moves that border up to 32 MiB by itself, as it sees such blocks freed; what lies below it is cut from one
    heap, which keeps its holes. A step's activations are mostly of 1 to 32 MiB.

    With it the peak is the plan's; without, a gigabyte more for GPT-2 124M. The price is that fresh pages are cleared
    at each allocation, so it is for runs whose memory gets short (tests/benchmarks/auto_under_budget.py has both).

    Returns:
        Whether the C library took it.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, malloc_trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError):  # no such functions: macOS, musl
        return False
    mallopt.argtypes, malloc_trim.argtypes = (ctypes.c_int, ctypes.c_int), (ctypes.c_size_t,)
    taken = mallopt(M_MMAP_THRESHOLD, MAPPED_FROM) and mallopt(M_TRIM_THRESHOLD, 2 * MAPPED_FROM)
    malloc_trim(0)  # what the heap's holes hold by now
    return bool(taken)
