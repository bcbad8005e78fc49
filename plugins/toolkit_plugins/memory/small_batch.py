"""Smaller micro-batches with gradient accumulation, for the same global batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

from pydantic import Field

from toolkit.api import Change, Claim, Device, Fidelity, Settings, Strategy


class SmallBatch(Strategy):
    """Use small micro-batches and accumulate their gradients: activations shrink, the optimizer step stays the same.

    The loss is normalized over the tokens of the whole global batch, so the numbers change only by the order of
    floating-point summation. Dropout, where a model has it, draws different masks: as many, and as random.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"batch"})
    fidelity: ClassVar[Fidelity] = "exact"

    micro_batch_size: int = Field(default=2, ge=1)
    """Sequences per forward pass on one device; must divide the global batch."""

    @classmethod
    def candidates(cls, settings: Settings, device: Device) -> Iterable[Self]:
        """Every size that divides the global batch, from the smallest."""
        whole = settings.global_batch_size
        return [cls(micro_batch_size=size) for size in range(1, whole) if whole % size == 0]

    def changes(self, settings: Settings, device: Device) -> Mapping[str, Change]:
        """Set the micro-batch size; the global batch is the recipe's."""
        steps = settings.global_batch_size // self.micro_batch_size
        return {"micro_batch_size": Change(self.micro_batch_size, f"{steps} accumulated per step on one device")}
