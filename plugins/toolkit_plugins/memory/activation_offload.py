"""Offloads activations to host memory until the backward pass needs them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from toolkit.api import Claim, Fidelity, Requirement, RunContext, Strategy

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class ActivationOffload(Strategy):
    """Offload the activations that the backward pass needs to host memory, and copy them back when it needs them.

    Exact, and costs transfers rather than recomputation: every activation crosses the bus twice, at 25 GB/s at best.
    Use it with gradient-checkpointing: then only the activations between layers are copied, the price is small, and
    what stays on the GPU hardly grows with the number of layers. Rajbhandari et al. 2021 (ZeRO-Infinity),
    https://arxiv.org/abs/2104.07857. The host needs room for the copies: pinned memory, so that they are asynchronous.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"activation-placement"})
    fidelity: ClassVar[Fidelity] = "exact"

    least_bytes: int = Field(default=1 << 20, ge=0)
    """Tensors smaller than this stay on the device: the overhead of a copy outweighs the memory that it saves."""

    def requires(self) -> Sequence[Requirement]:
        """A GPU: on a CPU the activations are in host memory already."""
        return [Requirement("device", "cuda", cure="use gradient-checkpointing, which needs none")]

    def apply(self, model: PreTrainedModel, run: RunContext) -> PreTrainedModel:
        """Return the model with hooks that offload the activations of its forward pass to the host."""
        copies = HostCopies(least_bytes=self.least_bytes, pinned=run.device.kind == "cuda")
        model.register_forward_pre_hook(copies.begin)
        model.register_forward_hook(copies.end, always_call=True)
        return model


class HostCopies:
    """Host copies of the tensors that autograd saves in a forward pass.

    Not `torch.autograd.graph.save_on_cpu`: it copies the weights too, which every matrix multiplication saves and which
    are on the device anyway. Both copies are queued in order on the device's current stream, so they need no
    synchronization of their own.
    """

    def __init__(self, *, least_bytes: int, pinned: bool) -> None:
        self.least_bytes = least_bytes
        self.pinned = pinned
        self._weights: set[int] = set()
        self._passes: list[AbstractContextManager[None]] = []

    def begin(self, model: torch.nn.Module, inputs: Any) -> None:
        """Offload what autograd saves from here on."""
        import torch

        # Looked up in every pass: the weights move to the device only after the strategies have been applied.
        self._weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        saving = torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)
        self._passes.append(saving if torch.is_grad_enabled() else nullcontext())
        self._passes[-1].__enter__()

    def end(self, model: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        """Stop offloading: what the loss saves after the forward pass stays on the device."""
        self._passes.pop().__exit__(None, None, None)

    def pack(self, tensor: torch.Tensor) -> Any:
        """The tensor's device and its host copy; the tensor itself where a copy would not pay off."""
        import torch
        from torch._subclasses.fake_tensor import FakeTensor

        # A weight's transpose shares its storage.
        stays = tensor.nbytes < self.least_bytes or tensor.untyped_storage()._cdata in self._weights
        if stays or not tensor.is_floating_point():
            return tensor
        if isinstance(tensor, FakeTensor):  # in a plan the device is the CPU, so the host copy goes elsewhere
            return tensor.device, tensor.to("meta")
        host = torch.empty_like(tensor, device="cpu", pin_memory=self.pinned)
        host.copy_(tensor, non_blocking=self.pinned)
        return tensor.device, host

    def unpack(self, packed: Any) -> torch.Tensor:
        """The tensor, back on its device."""
        import torch

        if isinstance(packed, torch.Tensor):
            return packed
        device, host = packed
        restored: torch.Tensor = host.to(device, non_blocking=self.pinned)
        return restored
