"""Saves checkpoints often, so that a crash costs little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from toolkit.api import Change, Claim, Device, Fidelity, Settings, Strategy


class FrequentSaves(Strategy):
    """Save checkpoints by the clock and, if asked, every N steps; keep the newest few."""

    claims: ClassVar[frozenset[Claim]] = frozenset({"saves"})
    fidelity: ClassVar[Fidelity] = "exact"

    save_minutes: float | None = Field(default=5.0, gt=0)
    """Save once this many minutes have passed since the last save: the most that a crash can cost."""
    save_steps: int | None = Field(default=None, ge=1)
    """Also save every N optimizer steps."""
    save_total_limit: int = Field(default=2, ge=1)
    """Keep this many checkpoints; an older one is removed once a newer one is safe on disk."""

    keep_every: int | None = Field(default=None, ge=1)
    """Also save every N steps and keep those checkpoints for good: milestones to go back to."""

    def changes(self, settings: Settings, device: Device) -> Mapping[str, Change]:
        """Set when to save and how many checkpoints to keep."""
        return {name: Change(getattr(self, name)) for name in type(self).model_fields}
