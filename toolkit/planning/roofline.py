"""How long a step takes: each operation as long as its arithmetic or its memory traffic, whichever is longer.

That is the roofline model (Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785). Rates are
the vendor's, of which a large matrix multiplication reaches about four fifths, or measured here in a second. The
absolute figure is an estimate that leaves out waiting for data and for other processes. What counts is the ratio
between two plans for one device, which needs no table of what each strategy is supposed to cost.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.api import Device
from toolkit.api.context import Precision
from toolkit.formatting import counted
from toolkit.planning.devices import GIGA, TERA, Links, Published
from toolkit.planning.kept_rates import kept
from toolkit.planning.trace import Work

if TYPE_CHECKING:
    import torch

ACHIEVED_SHARE = 0.8
"""Share of the published rates that large operations reach: 790 of 989 TFLOP/s in a bf16 matmul on an H200."""
SECONDS_PER_KERNEL = {"cuda": 5e-6, "mps": 1e-5, "cpu": 1e-5}
"""Launch overhead of an operation, however small it is."""
SECONDS_PER_FRESH_BYTE = 2e-10
"""Page-fault cost on a CPU that cannot be measured here: just under a microsecond per 4 KiB page."""
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float8_e4m3fn": "bf16", "float8_e5m2": "bf16"}
"""Of float8 no rate has been measured yet; it is no slower than bf16."""
PROBE_SIDE = {"cuda": 8192, "mps": 4096, "cpu": 1024}
"""Side of the matrices of the probe: on a GPU, smaller ones measure the launch."""
PROBE_BYTES = {"cuda": 2**30, "mps": 2**28, "cpu": 2**26}
"""Bytes read and written by the probe of the bandwidth: several times the cache."""
PROBE_SECONDS = 0.2
BUSY, BUSY_PROBE_SECONDS = 0.5, 0.6
"""At or above this load of other programs per CPU, the probe runs longer, to find a moment without them."""
LOAD_OF_THIS_PROCESS = 1.0
"""The part of the load average that this process has just caused with its imports."""
EMULATED_PROBE_SIDE = 128
"""Probe size where the hardware has no bfloat16: a full-sized product may take seconds there."""


@dataclass(frozen=True)
class Rates:
    """How fast a device is."""

    flops: Mapping[str, float]
    bandwidth: float
    seconds_per_kernel: float
    source: str
    """Where these numbers come from, in words."""
    seconds_per_fresh_byte: float = 0.0
    """Extra cost of newly allocated memory: on a CPU the system zeroes each page first; on a GPU there is none."""
    links: Links | None = None
    """Between the devices, where that is known."""
    gpus_per_node: int | None = None
    """GPUs of a host, in a plan for GPUs whose links are not known."""

    @property
    def per_host(self) -> int | None:
        """Devices of a host; None if the processes are where this one has been started."""
        return self.links.per_host if self.links else self.gpus_per_node

    def seconds(self, operations: Iterable[tuple[Work, int]], *, half: str = "bf16") -> float:
        """How long these operations take, one after the other.

        Args:
            operations: each with its count.
            half: the 16-bit format that the device computes in, whatever the trace used.
        """
        total = 0.0
        for work, count in operations:
            precision = PRECISIONS.get(work.precision, "fp32")
            rate = self.flops.get(half if precision != "fp32" else "fp32", self.flops["fp32"])
            own = max(work.flops / rate, work.moved_bytes / self.bandwidth, self.seconds_per_kernel)
            total += count * (own + work.fresh_bytes * self.seconds_per_fresh_byte)
        return total


def published(entry: Published) -> Rates:
    """The rates of a device that this machine does not have."""
    return Rates(
        flops={precision: rate * ACHIEVED_SHARE for precision, rate in entry.flops.items()},
        bandwidth=entry.bandwidth * ACHIEVED_SHARE,
        seconds_per_kernel=SECONDS_PER_KERNEL[entry.device.kind],
        seconds_per_fresh_byte=SECONDS_PER_FRESH_BYTE if entry.device.kind == "cpu" else 0.0,
        source=f"{ACHIEVED_SHARE:.0%} of the published rates of {entry.device.name}",
    )


@functools.lru_cache(maxsize=2)
def measured(device: Device) -> Rates:
    """The rates of this machine's device, from a benchmark of about a second, which is kept for the next start."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16") if device.kind == "cuda" else ("fp32", "bf16")
    busy, seconds = _others_load(), _probe_seconds()
    flops: dict[str, float] = {precision: product_rate(device, precision) for precision in precisions}
    size = PROBE_BYTES[device.kind]
    probe = kept(device, "memory", lambda: _memory_rates(size, device, seconds), is_busy=_is_busy)
    bandwidth, fresh = probe.figures
    _forget_probe(device)
    shown = ", ".join(f"{_rate(rate)} in {name}" for name, rate in flops.items())
    return Rates(
        flops=flops,
        bandwidth=bandwidth,
        seconds_per_kernel=SECONDS_PER_KERNEL[device.kind],
        seconds_per_fresh_byte=fresh if device.kind == "cpu" else 0.0,
        source=f"measured here: {shown}, {bandwidth / GIGA:.1f} GB/s" + (_caution(busy, device) if probe.now else ""),
    )


@functools.lru_cache(maxsize=8)
def product_rate(device: Device, precision: Precision) -> float:
    """FLOP/s in the product of two large matrices, measured in a fraction of a second, or by an earlier start."""
    import torch

    emulated = precision != "fp32" and device.kind == "cpu" and not device.bf16
    side = EMULATED_PROBE_SIDE if emulated else PROBE_SIDE[device.kind]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    seconds = _probe_seconds()
    probe = kept(
        device, f"product-{precision}", lambda: [_product_rate(dtype, side, device, seconds)], is_busy=_is_busy
    )
    _forget_probe(device)
    (rate,) = probe.figures
    return rate


def _forget_probe(device: Device) -> None:
    """Give the probe's memory back, so that it is not part of the peak of a run."""
    import torch

    if device.kind == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _memory_rates(size: int, device: Device, seconds: float) -> list[float]:
    """Bytes per second that are read or written, and what a byte of newly allocated memory costs beside that."""
    import torch

    many = torch.ones(size // 4, device=device.kind)
    in_place, to_fresh = _seconds(lambda: many.add_(1), device, seconds), _seconds(lambda: many + 1, device, seconds)
    return [2 * size / in_place, max(0.0, to_fresh - in_place) / size]


def _probe_seconds() -> float:
    return BUSY_PROBE_SECONDS if _is_busy() else PROBE_SECONDS


def _is_busy() -> bool:
    return _others_load() >= BUSY


def _others_load() -> float:
    """Runnable threads of other programs per CPU, on average over the last minute."""
    return max(0.0, os.getloadavg()[0] - LOAD_OF_THIS_PROCESS) / (os.cpu_count() or 1)


def _caution(busy: float, device: Device) -> str:
    if device.kind != "cpu" or busy < BUSY:
        return ""
    load = f"load {os.getloadavg()[0]:.1f} on {counted(os.cpu_count() or 1, 'core')}"
    return f"; while the machine was busy ({load}): the time may be up to {1 + busy:.1f} times shorter"


def _product_rate(dtype: torch.dtype, side: int, device: Device, seconds: float) -> float:
    """FLOP/s in the product of two square matrices."""
    import torch

    # Random: of ones or zeros, a GPU draws less power and keeps a higher clock.
    own = torch.Generator(device.kind).manual_seed(0)
    square = torch.rand(side, side, generator=own, device=device.kind).to(dtype)
    return 2 * side**3 / _seconds(lambda: square @ square, device, seconds)


def _seconds(work: Callable[[], object], device: Device, for_seconds: float) -> float:
    """The shortest time of a few tries, which is the one least disturbed by other processes."""
    import torch

    waits: dict[str, Callable[[], object]] = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    synchronize = waits.get(device.kind, lambda: None)
    work()
    synchronize()
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < for_seconds:
        start = time.perf_counter()
        work()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def _rate(flops: float) -> str:
    return f"{flops / TERA:.1f} TFLOP/s" if flops >= TERA else f"{flops / GIGA:.0f} GFLOP/s"
