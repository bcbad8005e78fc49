"""`auto`: a placeholder for the strategies that make the run fit this machine.

It is offered as a plugin, so that a recipe names it as it names strategies, but the toolkit itself replaces it
(`toolkit.planning.choose`).
"""

from __future__ import annotations

from pydantic import ByteSize

from toolkit.api import Device, Fidelity, Strategy


class Auto(Strategy):
    """Plan the run, and choose the strategies that make it fit: the fastest of those that change the numbers least.

    It manages only what no other strategy of the recipe manages, and leaves the global batch as it is. The choice is
    made when a run begins, is shown, and holds for the rest of the run.
    """

    budget: ByteSize | None = None
    """Memory that the run may use: 6GiB, say. Default: the device's memory, or as much as the container may use."""
    fidelity: Fidelity = "approximate"  # type: ignore[misc]  # a property of other strategies' class, here an option
    """What a chosen strategy may change: `exact` nothing, `approximate` the precision, `different` what is trained."""

    def limit(self, device: Device) -> int:
        """The number of bytes that the run may use: the budget, capped at the device's memory."""
        return min(self.budget or device.memory_bytes, device.memory_bytes)
