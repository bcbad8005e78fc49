"""The devices that a plan can be made for without having one: their memory and published rates.

Rates are dense (vendors like to print twice as much, with 2:4 sparsity), with float32 accumulation, at boost clock.
Memory is what `nvidia-smi` reports, which is what a run has.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from toolkit.api import Device
from toolkit.errors import UsageError

TERA, GIGA, MEBI = 10**12, 10**9, 2**20


@dataclass(frozen=True)
class Published:
    """A device to rent or buy, by its datasheet."""

    device: Device
    bandwidth: float
    """Memory bandwidth, in bytes per second."""
    flops: dict[str, float] = field(default_factory=dict)
    """FLOP/s in matrix multiplications, by number format."""


def _cuda(
    name: str,
    mebibytes: int,
    capability: tuple[int, int],
    *,
    bandwidth: float,
    fp32: float,
    fp16: float,
    bf16: float | None = None,
) -> Published:
    """A GPU, with `bandwidth` in GB/s and the other rates in TFLOP/s."""
    rates = {"fp32": fp32, "bf16": bf16, "fp16": fp16}
    return Published(
        Device("cuda", name, mebibytes * MEBI, bf16=bf16 is not None, compute_capability=capability),
        bandwidth=bandwidth * GIGA,
        flops={precision: rate * TERA for precision, rate in rates.items() if rate is not None},
    )


KNOWN: dict[str, Published] = {
    # https://resources.nvidia.com/en-us-gpu-resources/hpc-datasheet-sc23
    "h200": _cuda("NVIDIA H200", 143771, (9, 0), bandwidth=4800, fp32=67, bf16=989, fp16=989),
    # https://resources.nvidia.com/en-us-gpu-resources/h100-datasheet-24306 (SXM)
    "h100": _cuda("NVIDIA H100 80GB HBM3", 81559, (9, 0), bandwidth=3350, fp32=67, bf16=989, fp16=989),
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-nvidia-us-2188504-web.pdf
    "a100-80g": _cuda("NVIDIA A100-SXM4-80GB", 81920, (8, 0), bandwidth=2039, fp32=19.5, bf16=312, fp16=312),
    "a100-40g": _cuda("NVIDIA A100-SXM4-40GB", 40960, (8, 0), bandwidth=1555, fp32=19.5, bf16=312, fp16=312),
    # https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413
    "l40s": _cuda("NVIDIA L40S", 46068, (8, 9), bandwidth=864, fp32=91.6, bf16=362, fp16=362),
    # https://resources.nvidia.com/en-us-data-center-overview/l4-gpu-datasheet (printed with sparsity: halved here)
    "l4": _cuda("NVIDIA L4", 23034, (8, 9), bandwidth=300, fp32=30.3, bf16=121, fp16=121),
    # https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf
    "a10g": _cuda("NVIDIA A10G", 23028, (8, 6), bandwidth=600, fp32=35, bf16=70, fp16=70),
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf
    "t4": _cuda("Tesla T4", 15360, (7, 5), bandwidth=320, fp32=8.1, fp16=65),
    # https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf (SXM2)
    "v100": _cuda("Tesla V100-SXM2-16GB", 16160, (7, 0), bandwidth=900, fp32=15.7, fp16=125),
    # https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf (appendix A)
    "rtx-4090": _cuda("NVIDIA GeForce RTX 4090", 24564, (8, 9), bandwidth=1008, fp32=82.6, bf16=165.2, fp16=165.2),
    # https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf (appendix A)
    "rtx-3090": _cuda("NVIDIA GeForce RTX 3090", 24576, (8, 6), bandwidth=936, fp32=35.6, bf16=71, fp16=71),
    "rtx-3060": _cuda("NVIDIA GeForce RTX 3060", 12288, (8, 6), bandwidth=360, fp32=12.7, bf16=25, fp16=25),
    # https://research.google.com/colaboratory/faq.html names no machine; a session without a GPU shows 12.67 GiB and
    # two hyperthreads of one Xeon core at 2.2 GHz: 32 operations per cycle with AVX2, and about 10 GB/s. It has no
    # bfloat16 in hardware, which is 40 times slower (plugins/toolkit_plugins/optimizer/muon.py).
    "colab-cpu": Published(
        Device("cpu", "Colab's processor", 12_977 * MEBI),
        bandwidth=10 * GIGA,
        flops={"fp32": 70 * GIGA, "bf16": 70 / 40 * GIGA},
    ),
}


def known(name: str) -> Published:
    """The device of this name.

    Raises:
        UsageError: it is not in the list.
    """
    if name.lower() not in KNOWN:
        raise UsageError(
            f"--device {name}: no such device; known are {', '.join(KNOWN)}; for another take the one most "
            f"like it, and say with --memory 24GiB what it has"
        )
    return KNOWN[name.lower()]


def device_called(name: str | None, *, memory: int | str | None = None) -> Device:
    """The device of this name or this machine's, with this much memory if it is given.

    Raises:
        UsageError: there is no device of that name, or `memory` is no size.
    """
    if name is None:
        from toolkit.system.device import detect

        device = detect()
    else:
        device = known(name).device
    return device if memory is None else replace(device, memory_bytes=_bytes(memory))


def _bytes(memory: int | str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = TypeAdapter(ByteSize).validate_python(memory)
    except ValidationError:
        raise UsageError(f"--memory {memory}: not a size; write it like 12GiB or 800MB") from None
    if size <= 0:
        raise UsageError(f"--memory {memory}: must be more than 0")
    return int(size)
