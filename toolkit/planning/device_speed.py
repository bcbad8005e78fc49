"""How many FLOPs of a model a device does in a second, where nobody has trained that model on it yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.errors import UnavailableError
from toolkit.planning.devices import TERA, device_called
from toolkit.planning.devices import known as known_device
from toolkit.planning.roofline import measured, published

if TYPE_CHECKING:
    from toolkit.api.context import Precision

MFU = {"cpu": (0.4, "assumed, 0.33 to 0.65 in tests/benchmarks/results/throughput.txt"),
       "cuda": (0.2, "assumed, 0.13 to 0.35 in tests/benchmarks/results/h100.txt"),
       "mps": (0.2, "assumed, never measured")}  # fmt: skip
"""Model FLOPs over the rate of a large matrix product, which a run is assumed to reach, and what is known of it. On the
low side: who is done early can train more, but a run that is cut off has not had its decay."""


@dataclass(frozen=True)
class Speed:
    """FLOP/s of all devices together, and where that comes from."""

    flops: float
    mfu: float
    source: str

    @property
    def model_flops(self) -> float:
        """FLOP/s that go into the model's own arithmetic."""
        return self.flops * self.mfu


def speed_of(device: str | None, processes: int, mfu: float | None) -> tuple[str, Speed]:
    """The device's name, and how fast as many of them are.

    Raises:
        UsageError: there is no device of that name.
        UnavailableError: torch cannot use the one that is here.
    """
    found = device_called(device)
    if device is None and found.kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UnavailableError(
                f"torch {torch.__version__} cannot use the {found.name} of this machine; name it with --device, or set "
                f"CUDA_VISIBLE_DEVICES= (empty) to train on the CPU"
            )
    precision: Precision = "bf16" if found.bf16 else "fp16" if found.kind == "cuda" else "fp32"
    rates = measured(found) if device is None else published(known_device(device))
    share, known = (mfu, "as given") if mfu else MFU[found.kind]
    rate = rates.flops[precision]
    words = f"MFU {share:.0%} ({known}) of {rate / TERA:.3g} TFLOP/s in {precision}; {rates.source}"
    if processes == 1 or found.kind == "cpu":  # whose processes share its cores
        return found.name, Speed(rate, share, words)
    return f"{processes} x {found.name}", Speed(rate * processes, share, words)
