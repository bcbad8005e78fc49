"""Weights and gradients in bfloat16: half the bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from toolkit.api import Claim, Device, Fidelity, RunContext, Settings, Strategy

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class WeightsInBF16(Strategy):
    """Keep the weights, and with them gradients and activations, in bfloat16, without a float32 master copy.

    Each update is computed in float32, one tensor at a time, and written back with stochastic rounding, so that small
    updates are not lost but add up on average: approximate. The optimizer state stays in float32. The price: a random
    number per weight and step, and slow matrix multiplications on CPUs without bfloat16.
    Zamirai et al. 2020, https://arxiv.org/abs/2010.06192.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"weights", "precision"})
    fidelity: ClassVar[Fidelity] = "approximate"
    phase: ClassVar[Literal["weights", "adapters", "activations"]] = "weights"

    @classmethod
    def candidates(cls, settings: Settings, device: Device) -> Iterable[Self]:
        """One, where the hardware multiplies bfloat16; elsewhere a step would take many times as long."""
        return [cls()] if device.bf16 else []

    def apply(self, model: PreTrainedModel, run: RunContext) -> PreTrainedModel:
        """Return the model with its parameters in bfloat16; buffers are not cast: rotary frequencies need float32."""
        import torch

        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        model.config.dtype = torch.bfloat16
        return model

    def wrap_optimizer(
        self, optimizer: torch.optim.Optimizer, model: PreTrainedModel, run: RunContext
    ) -> torch.optim.Optimizer:
        """Return an optimizer whose updates are rounded stochastically; to the nearest, small ones would be lost."""
        from toolkit_plugins.memory.stochastic_rounding import StochasticRounding

        return StochasticRounding(optimizer, seed=run.seed)
