"""Makes fake tensors take the course that real ones would take on the run's device, where the two differ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def as_on(device_kind: str, *, documents_masked: bool) -> Iterator[None]:
    """Operations with the memory and the work that they have on this kind of device.

    Args:
        device_kind: "cpu", "cuda" or "mps".
        documents_masked: whether the batches say by their positions where a document begins.
    """
    from torch.overrides import TorchFunctionMode

    class Kernels(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            import torch

            kwargs = dict(kwargs or {})
            if func is torch.nn.functional.scaled_dot_product_attention and device_kind == "cuda":
                # With dropout, torch has no fused attention on a CPU and holds every score; CUDA's fused kernels have
                # dropout. A fake CUDA tensor would know that, and cannot be made where torch has no CUDA.
                kwargs["dropout_p"] = 0.0
            if func is torch._grouped_mm:
                return _through_one_expert(*args)
            return func(*args, **kwargs)

    with Kernels(), _positions_believed(documents_masked):
        yield


def _through_one_expert(tokens: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """What a mixture of experts computes: each token goes through one matrix, so any of them will do.

    The fake kernel of the real call takes bfloat16 alone, and counts no work.

    Args:
        tokens: shape (tokens, in), each as often as it has experts.
        experts: shape (experts, in, out).
    """
    import torch

    with torch.autocast(tokens.device.type, enabled=False):  # it does not reach the real call either
        return tokens @ experts[0]


@contextlib.contextmanager
def _positions_believed(documents_masked: bool) -> Iterator[None]:
    """Attention as with real positions, which say whether documents are kept apart.

    transformers reads that from the values of `position_ids`; of fake ones it believes the worst, and would hold a
    mask and every copy of shared keys that a real step does not.
    """
    from transformers import masking_utils

    original = masking_utils.find_packed_sequence_indices
    if not documents_masked:
        masking_utils.find_packed_sequence_indices = lambda *_, **__: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = original
