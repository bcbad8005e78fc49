"""Makes operations on fake tensors dispatch as they would on the run's device, where the two differ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from toolkit.planning.tracker import StorageTracker

# fmt: off
FLOAT32_IN_CUDA_AUTOCAST = frozenset({
    "__pow__", "__rpow__", "pow", "exp", "expm1", "log", "log2", "log10", "log1p", "reciprocal", "rsqrt", "tan",
    "cosh", "sinh", "layer_norm", "group_norm", "norm", "dist", "cosine_similarity", "nll_loss", "cross_entropy",
    "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "logsumexp", "renorm", "softmax", "log_softmax", "prod",
    "cumsum", "cumprod", "sum",
})
# fmt: on
"""What autocast computes in float32 on CUDA, but not on a CPU: the `pow` in GPT-2's GELU makes it and all that is kept
of it twice as large. https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-autocast-to-float32"""


@contextlib.contextmanager
def as_on(device_kind: str) -> Iterator[None]:
    """Give operations the memory and the work that they have on this kind of device: "cpu", "cuda" or "mps"."""
    from torch.overrides import TorchFunctionMode
    from torch.utils._pytree import tree_map_only

    class Kernels(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            import torch

            kwargs = dict(kwargs or {})
            if (
                device_kind == "cuda"
                and torch.is_autocast_enabled("cpu")
                and getattr(func, "__name__", "") in FLOAT32_IN_CUDA_AUTOCAST
            ):
                args, kwargs = tree_map_only(torch.Tensor, _in_float32, (args, kwargs))
            if func is torch.nn.functional.scaled_dot_product_attention and device_kind == "cuda":
                # With dropout, torch has no fused attention on a CPU and materializes all scores; CUDA's fused kernels
                # support dropout. A fake CUDA tensor would know, but cannot be made where torch has no CUDA.
                kwargs["dropout_p"] = 0.0
            if func is torch._grouped_mm:
                return _through_one_expert(*args)
            return func(*args, **kwargs)

    with Kernels():
        yield


def _in_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _through_one_expert(tokens: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """A stand-in for a mixture of experts: each token goes through one matrix, so any of them will do.

    The fake kernel of the real call accepts only bfloat16, and counts no work.

    Args:
        tokens: shape (tokens, in), each repeated once per expert that it is routed to.
        experts: shape (experts, in, out).
    """
    import torch

    with torch.autocast(tokens.device.type, enabled=False):  # autocast does not reach the real call either
        return tokens @ experts[0]


@contextlib.contextmanager
def chunks_counted(ledger: StorageTracker) -> Iterator[None]:
    """Run a loss in chunks for the first two and the last, if that one is shorter, and count the second for the rest.

    The second is the first that begins while the tensors of another are held. Blocks of any length are so planned in
    the same time.
    """
    from toolkit.api import planner

    original = planner.every_start

    def starts(length: int, chunk_size: int) -> Iterator[int]:
        alike = length // chunk_size - 1
        if alike < 1:
            yield from original(length, chunk_size)
            return
        yield 0
        ledger.repetitions = alike
        yield chunk_size
        ledger.repetitions = 1
        if length % chunk_size:
            yield length - length % chunk_size

    planner.every_start = starts
    try:
        yield
    finally:
        planner.every_start = original
