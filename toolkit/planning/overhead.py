"""Memory that a process takes beside its tensors: the libraries on a CPU, the CUDA context on a GPU.

On a CPU it is measured in the planning process, which has imported what a run imports. It is small compared with a
model of a hundred million parameters, and most of the total with one of a million.
"""

from __future__ import annotations

import functools

from toolkit.api import Device

LOADED_AFTER_IMPORTS_BYTES = 45 * 2**20
"""What becomes resident after the imports: Arrow tables, the tokenizer, code pages of the kernels that run."""
COMPILER_BYTES = 200 * 10**6
"""What torch.compile adds to a process on its first start: inductor with sympy, and the graphs while it traces."""
CUDA_CONTEXT_BYTES = 500 * 2**20
"""The CUDA context with the kernels that training loads: 300 to 600 MB, depending on driver and architecture."""
CUBLAS_WORKSPACE_BYTES = 32 * 2**20
"""The cuBLAS workspace among torch's allocations: 8 MiB, on Hopper 32 MiB."""
NCCL_BYTES = 10**9
"""The buffers of an NCCL communicator of eight or more H100s, which grow no more beyond two hosts:
https://github.com/NVIDIA/nccl/issues/864, https://github.com/NVIDIA/nccl/issues/1685."""
CUDA_ALLOCATION_GRANULARITY = 512
"""torch's CUDA caching allocator rounds every allocation up to this."""


def framework_bytes(device: Device, *, compiles: bool = False, processes: int = 1) -> int:
    """Device memory in use before the first tensor."""
    if device.kind == "cuda":
        return CUDA_CONTEXT_BYTES + CUBLAS_WORKSPACE_BYTES + NCCL_BYTES * (processes > 1)
    return _resident_after_imports() + LOADED_AFTER_IMPORTS_BYTES + COMPILER_BYTES * compiles


@functools.cache
def _resident_after_imports() -> int:
    """Resident memory, measured once, before the first plan itself adds to it."""
    from toolkit.system.host_memory import resident_bytes
    from toolkit.training.libraries import import_libraries

    import_libraries()  # what a run imports is what is measured
    return resident_bytes()


def how_reckoned(device: Device) -> str:
    """How the bytes were determined, in a sentence."""
    if device.kind == "cuda":
        return (
            "traced on fake CPU tensors, whose storages are those of CUDA, each rounded up to 512 bytes; with "
            "CUDA's context added. Fragmentation is not foreseen"
        )
    if device.kind == "mps":
        return "traced on fake CPU tensors; the memory is the machine's, which the system and its programs share"
    return "traced on fake tensors; with what this process has resident after its imports"
