"""Mixed precision: 16-bit matrix multiplications, where the device is faster at them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, Self

from toolkit.api import Change, Claim, Device, Fidelity, Settings, Strategy


class MixedPrecision(Strategy):
    """Multiply matrices in bf16 or fp16, as the device supports, and keep weights and optimizer state in float32."""

    claims: ClassVar[frozenset[Claim]] = frozenset({"precision"})
    fidelity: ClassVar[Fidelity] = "approximate"

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto` picks bf16 where the hardware supports it, fp16 on older NVIDIA GPUs, and fp32 elsewhere."""

    @classmethod
    def candidates(cls, settings: Settings, device: Device) -> Iterable[Self]:
        """One, where the device is faster in 16 bits; elsewhere it would save memory but be much slower."""
        return [cls()] if device.bf16 or device.kind == "cuda" else []

    def changes(self, settings: Settings, device: Device) -> Mapping[str, Change]:
        """Set the precision that the hardware supports, with the reason."""
        if self.precision != "auto":
            return {"precision": Change(self.precision, "asked for by name")}
        if device.bf16:
            return {"precision": Change("bf16", f"{device.name} multiplies bf16 in hardware")}
        if device.kind == "cuda":
            return {"precision": Change("fp16", f"{device.name} has fast fp16 and no bf16")}
        return {"precision": Change("fp32", f"{device.name} has no 16-bit matrix products; they would be slower")}
