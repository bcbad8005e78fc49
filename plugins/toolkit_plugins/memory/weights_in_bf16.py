"""Half the bytes for weights and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from toolkit.api import Change, Claim, Device, Fidelity, Memory, RunContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WeightsInBF16(Memory):
    """Keep the weights, and with them gradients and activations, in bfloat16; there is no float32 copy.

    Each step is computed in float32, one weight at a time, and rounded to bfloat16 at random, up or down in proportion,
    so that small steps are not lost but arrive on average: approximate. The optimizer's state stays float32. The price:
    a random number per weight and step, and slow products of matrices on processors without bfloat16.
    Zamirai et al. 2020, https://arxiv.org/abs/2010.06192.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"weights", "precision"})
    fidelity: ClassVar[Fidelity] = "approximate"
    phase: ClassVar[Literal["weights", "adapters", "activations"]] = "weights"

    @classmethod
    def candidates(cls, settings: Mapping[str, Any], device: Device) -> Iterable[Self]:
        """There is one, where the device multiplies in bfloat16; where it does not, that takes many times as long."""
        return [cls()] if device.bf16 else []

    def changes(self, settings: Mapping[str, Any], device: Device) -> Mapping[str, Change]:
        """Have the optimizer's steps rounded at random."""
        return {"stochastic_rounding": Change(True, "rounded to the nearest bfloat16, small steps would be lost")}

    def apply(self, model: PreTrainedModel, run: RunContext) -> PreTrainedModel:
        """Return the model with its parameters in bfloat16; buffers stay, for rotary frequencies need float32."""
        import torch

        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        model.config.dtype = torch.bfloat16
        return model
