"""Kernels whose results never vary, so that a resume is exact to the bit on a GPU, too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from toolkit.system.garbage_collection import held_for_imports

CUBLAS_WORKSPACE = ":4096:8"
"""A cuBLAS workspace of fixed size, 32 MiB: https://docs.nvidia.com/cuda/cublas/#results-reproducibility."""


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Have torch use deterministic kernels only, and raise where an operation has none.

    To be entered before the first product on a GPU, when cuBLAS reads its variable.
    """
    with held_for_imports("torch"):
        import torch

    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    options: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), options.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    options.fill_uninitialized_memory = False  # it finds bugs, at the price of each allocation
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        options.fill_uninitialized_memory = before[1]
