"""Copies of the training state in host memory, so that a save does not hold up the next step.

The buffers are reused, because fresh memory costs a page fault for every 4 KiB: for GPT-2 124M with AdamW, 1.5 GB, the
first copy takes several times as long as later ones (tests/benchmarks/test_save_stall.py). The price is that trained
weights and optimizer state are in memory twice.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolkit.system.host_memory import available_memory_bytes

if TYPE_CHECKING:
    import torch

MAX_SHARE_OF_FREE_MEMORY = 0.25
"""Share of the memory available before training that a snapshot may take."""


def fits_in_memory(model: torch.nn.Module, *, optimizer_states: int = 2) -> bool:
    """Whether a second copy of the trained weights and so many optimizer states for each of them fits in memory."""
    parameters = (parameter for parameter in model.parameters() if parameter.requires_grad)
    trained = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return (1 + optimizer_states) * trained <= MAX_SHARE_OF_FREE_MEMORY * available_memory_bytes()


class HostCopy:
    """Copies of the training state, in the same buffers each time."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], torch.Tensor] = {}

    def of_model(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The model's state; frozen weights are not copied, because nothing changes them."""
        frozen = {parameter.data_ptr() for parameter in model.parameters() if not parameter.requires_grad}
        copies: dict[str, torch.Tensor] = {}
        shared: dict[tuple[Any, ...], torch.Tensor] = {}
        for name, tensor in model.state_dict().items():
            if tensor.data_ptr() in frozen:
                copies[name] = tensor
                continue
            # Tied weights stay one tensor, or the checkpoint would store them twice.
            identity = (tensor.data_ptr(), tensor.shape, tensor.stride())
            if identity not in shared:
                shared[identity] = self._copy(tensor, ("model", name))
            copies[name] = shared[identity]
        return copies

    def of_optimizer(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state."""
        copied = self._nested(optimizer.state_dict(), ("optimizer",))
        assert isinstance(copied, dict)
        return copied

    def _nested(self, value: Any, path: tuple[Any, ...]) -> Any:
        import torch

        if isinstance(value, torch.Tensor):
            return self._copy(value, path)
        if isinstance(value, Mapping):
            return {key: self._nested(child, (*path, key)) for key, child in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._nested(child, (*path, index)) for index, child in enumerate(value))
        return copy.deepcopy(value)  # an object: the projectors of APOLLO and GaLore, which change in place

    def _copy(self, tensor: torch.Tensor, path: tuple[Any, ...]) -> torch.Tensor:
        import torch

        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            # Pinned, so that a GPU copies into it at the full speed of the bus.
            buffer = torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=tensor.is_cuda)
            self._buffers[path] = buffer
        return buffer.copy_(tensor.detach())
