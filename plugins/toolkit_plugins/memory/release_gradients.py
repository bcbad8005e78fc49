"""The optimizer step in backward: frees each gradient as soon as its parameter has been updated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

from toolkit.api import Change, Claim, Device, Fidelity, Settings, Strategy


class ReleaseGradients(Strategy):
    """Update each parameter inside the backward pass and free its gradient at once, so that only one is ever held.

    Only on one device, without gradient accumulation and without clipping (max_grad_norm: 0): accumulation and clipping
    need all gradients together, and so does fp16's loss scaler. The numbers are those of a run without it, and so is
    the speed, except that the CPU waits for the GPU at each gradient. Lv et al. 2023 (LOMO),
    https://arxiv.org/abs/2306.09782.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"gradients"})
    fidelity: ClassVar[Fidelity] = "exact"

    @classmethod
    def candidates(cls, settings: Settings, device: Device) -> Iterable[Self]:
        """One, where gradients are not clipped; with gradient accumulation, validating the settings rules it out."""
        return [cls()] if settings.max_grad_norm == 0 else []

    def changes(self, settings: Settings, device: Device) -> Mapping[str, Change]:
        """Turn it on; whether it goes with the other settings is checked once all of them are known."""
        return {"release_gradients": Change(True, "each gradient is freed as soon as its weight is updated")}
