"""Keeps activations in the processor's memory until the backward pass wants them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from toolkit.api import Claim, Fidelity, Memory, RunContext

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class ActivationOffload(Memory):
    """Copy what the backward pass will need to the host, and back when it needs it.

    Exact, and costs time instead of computing: every activation crosses the bus twice, 25 GB/s at best. With
    gradient-checkpointing only the borders of the layers do, which is the way to use it: the price is then small, and
    what stays on the GPU hardly grows with the number of layers. Rajbhandari et al. 2021 (ZeRO-Infinity),
    https://arxiv.org/abs/2104.07857. The host needs the memory: pinned, so that the copies do not wait for each other.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"activation-placement"})
    needs: ClassVar[frozenset[str]] = frozenset({"cuda"})
    fidelity: ClassVar[Fidelity] = "exact"
    instead: ClassVar[str] = "gradient-checkpointing, which needs none"

    least_bytes: int = Field(default=1 << 20, ge=0)
    """Tensors smaller than this stay where they are: a copy's start costs more than they take."""

    def apply(self, model: PreTrainedModel, run: RunContext) -> PreTrainedModel:
        """Return the model with a forward pass that saves its activations on the host."""
        copies = HostCopies(least_bytes=self.least_bytes, pinned=run.device.kind == "cuda")
        model.register_forward_pre_hook(copies.begin)
        model.register_forward_hook(copies.end, always_call=True)
        return model


class HostCopies:
    """What autograd saves in a forward pass, as copies on the host.

    Not `torch.autograd.graph.save_on_cpu`: it copies the weights too, which are saved by every product and are on the
    device anyway. Both copies are queued on the device's own stream, in order, and so need no waiting of their own.
    """

    def __init__(self, *, least_bytes: int, pinned: bool) -> None:
        self.least_bytes = least_bytes
        self.pinned = pinned
        self._weights: set[int] = set()
        self._passes: list[AbstractContextManager[None]] = []

    def begin(self, model: torch.nn.Module, inputs: Any) -> None:
        """Take what autograd saves from here on."""
        import torch

        # Looked up at each pass: the weights move to the device after the strategies are applied.
        self._weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        saving = torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)
        self._passes.append(saving if torch.is_grad_enabled() else nullcontext())
        self._passes[-1].__enter__()

    def end(self, model: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        """Leave to others what is saved after the forward pass: the loss's."""
        self._passes.pop().__exit__(None, None, None)

    def pack(self, tensor: torch.Tensor) -> Any:
        """The tensor's device and copy; the tensor itself where a copy would not pay."""
        import torch
        from torch._subclasses.fake_tensor import FakeTensor

        # A weight's transpose shares its storage.
        stays = tensor.nbytes < self.least_bytes or tensor.untyped_storage()._cdata in self._weights
        if stays or not tensor.is_floating_point():
            return tensor
        if isinstance(tensor, FakeTensor):  # a plan's, whose device is the processor: this is elsewhere
            return tensor.device, tensor.to("meta")
        host = torch.empty_like(tensor, device="cpu", pin_memory=self.pinned)
        host.copy_(tensor, non_blocking=self.pinned)
        return tensor.device, host

    def unpack(self, packed: Any) -> torch.Tensor:
        """The tensor where it was."""
        import torch

        if isinstance(packed, torch.Tensor):
            return packed
        device, host = packed
        restored: torch.Tensor = host.to(device, non_blocking=self.pinned)
        return restored
