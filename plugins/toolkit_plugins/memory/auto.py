"""Stands for the strategies that make the run fit this machine."""

from __future__ import annotations

from typing import ClassVar

from pydantic import ByteSize

from toolkit.api import Chooser, Claim, Device, Fidelity


class Auto(Chooser):
    """Plan the run, and choose the strategies with which it fits: the fastest of those that change the least.

    It manages what no other strategy of the recipe manages, and leaves the global batch as it is. The choice is made
    when a run begins, is shown, and stays for the rest of the run.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset()

    budget: ByteSize | None = None
    """What the run may take: 6GiB, say. Default: the memory of the device, or what the container may have of it."""
    fidelity: Fidelity = "approximate"  # type: ignore[misc]  # of a strategy a fact of its class, here the person's
    """What a strategy may change: `exact` nothing, `approximate` the precision, `different` what is trained."""

    def limit(self, device: Device) -> int:
        """The budget, if there is so much, or all there is."""
        return min(self.budget or device.memory_bytes, device.memory_bytes)

    def lowest_fidelity(self) -> Fidelity:
        """As the option says."""
        return self.fidelity
