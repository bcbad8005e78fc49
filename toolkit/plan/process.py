"""What a process takes beside its tensors: the libraries on a CPU, the driver's context on a GPU.

On a CPU this is measured, in the process that plans: it has imported what a run imports. It is small beside a model
of a hundred million parameters and most of all beside one of a million.
"""

from __future__ import annotations

import functools

from toolkit.api import Device

LOADED_LATER = 45 * 2**20
"""What a run touches after its imports: Arrow's tables, the tokenizer, pages of code that its kernels are in."""
CONTEXT = 500 * 2**20
"""CUDA's context with the kernels that training loads; 300 to 600 MB by driver and architecture."""
WORKSPACE = 32 * 2**20
"""What cuBLAS keeps for itself among torch's allocations: 8 MiB, on Hopper 32 MiB."""
CUDA_ROUNDING = 512
"""torch's allocator on CUDA rounds every allocation up to this."""


def framework_bytes(device: Device) -> int:
    """Memory of the device that is taken before the first tensor."""
    if device.kind == "cuda":
        return CONTEXT + WORKSPACE
    return _resident_after_imports() + LOADED_LATER


@functools.cache
def _resident_after_imports() -> int:
    """Measured once, before the first plan leaves its own traces."""
    import datasets  # noqa: F401 - a run imports it

    import toolkit.trainer  # noqa: F401 - what it imports is what is measured
    from toolkit.memory_watch import resident_bytes

    return resident_bytes()


def how_reckoned(device: Device) -> str:
    """Where the bytes come from, in a sentence."""
    if device.kind == "cuda":
        return (
            "traced on fake CPU tensors, whose storages are those of CUDA, each rounded up to 512 bytes; with "
            "CUDA's context added. Fragmentation is not foreseen"
        )
    if device.kind == "mps":
        return "traced on fake CPU tensors; the memory is the machine's, which the system and its programs share"
    return "traced on fake tensors; with what this process has resident after its imports"
