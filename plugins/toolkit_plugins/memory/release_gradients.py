"""Frees each gradient as soon as its parameter has been stepped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from toolkit.api import Change, Claim, Device, Fidelity, Memory


class ReleaseGradients(Memory):
    """Step each parameter inside the backward pass and free its gradient at once: no memory for the others.

    For steps of one forward pass, without clipping (max_grad_norm: 0), on one device: accumulation and clipping need
    all gradients together, and so does fp16's scaler. The numbers are those of the run without it; the time is too,
    but for a wait of the processor for a GPU at each gradient. Lv et al. 2023 (LOMO), https://arxiv.org/abs/2306.09782.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"gradients"})
    fidelity: ClassVar[Fidelity] = "exact"

    @classmethod
    def candidates(cls, settings: Mapping[str, Any], device: Device) -> Iterable[Self]:
        """Where nothing is clipped; where passes are accumulated, its needs rule it out."""
        return [cls()] if settings["max_grad_norm"] == 0 else []

    def changes(self, settings: Mapping[str, Any], device: Device) -> Mapping[str, Change]:
        """Switch it on; what has to fit is checked with all settings together."""
        return {"release_gradients": Change(True, "no two gradients need to be there at a time")}
