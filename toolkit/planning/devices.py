"""The devices that a plan can be made for without having one: their memory and published rates.

Rates are dense (vendors like to print twice as much, with 2:4 sparsity), with float32 accumulation, at boost clock.
Memory is what `nvidia-smi` reports, which is what a run has. Links are counted in one direction, where vendors print
the sum of both; those between hosts are the usual ones of servers with eight of these devices. A rate of a link without
a source is marked as assumed, and a plan says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from toolkit.api import Device
from toolkit.errors import UsageError

TERA, GIGA, MEBI = 10**12, 10**9, 2**20


@dataclass(frozen=True)
class Links:
    """How fast devices exchange data, in bytes per second and direction."""

    kind: Literal["nvlink", "pcie"]
    within_host: float
    """Of each device, to the others of its host."""
    between_hosts: float
    """Of each host, over all of its ports together."""
    per_host: int = 8
    """Devices of a host."""
    within_is_assumed: bool = False
    between_is_assumed: bool = False

    def described(self, hosts: int) -> str:
        """The rates that count for processes on so many hosts, and which of them are assumed."""
        name = {"nvlink": "NVLink", "pcie": "PCIe"}[self.kind]
        within = f"{self.within_host / GIGA:,g} GB/s of {name}{' (assumed)' * self.within_is_assumed}"
        if hosts == 1:
            return within
        between = f"{self.between_hosts * 8 / GIGA:,g} Gbit/s of each host's network"
        return f"{within}, and of {between}{' (assumed: --network sets it)' * self.between_is_assumed}"


@dataclass(frozen=True)
class Published:
    """A device to rent or buy, by its datasheet."""

    device: Device
    bandwidth: float
    """Memory bandwidth, in bytes per second."""
    flops: dict[str, float] = field(default_factory=dict)
    """FLOP/s in matrix multiplications, by number format."""
    links: Links | None = None
    """None for what is not built into servers with several."""


def _cuda(
    name: str,
    mebibytes: int,
    capability: tuple[int, int],
    *,
    bandwidth: float,
    fp32: float,
    fp16: float,
    bf16: float | None = None,
    links: Links,
) -> Published:
    """A GPU, with `bandwidth` in GB/s and the other rates in TFLOP/s."""
    rates = {"fp32": fp32, "bf16": bf16, "fp16": fp16}
    return Published(
        Device("cuda", name, mebibytes * MEBI, bf16=bf16 is not None, compute_capability=capability),
        bandwidth=bandwidth * GIGA,
        flops={precision: rate * TERA for precision, rate in rates.items() if rate is not None},
        links=links,
    )


def _links(kind: Literal["nvlink", "pcie"], gigabytes: float, *, gigabits: float) -> Links:
    """GB/s of each GPU within its host, and Gbit/s of the host's network."""
    return Links(kind, gigabytes * GIGA, gigabits / 8 * GIGA)


# NVLink: https://github.com/NVIDIA/nccl-tests/issues/212. The network is a DGX H100's, eight ports of 400 Gbit/s:
# https://docs.nvidia.com/dgx-basepod/reference-architecture-infrastructure-foundation-enterprise-ai/latest/core-components.html
HOPPER = _links("nvlink", 450, gigabits=3200)
# NVLink: https://www.nvidia.com/de-de/data-center/nvlink/ (600 GB/s in both directions). The network is assumed to be
# eight ports of 200 Gbit/s.
AMPERE = replace(_links("nvlink", 300, gigabits=1600), between_is_assumed=True)
# NVLink: http://www.manualshelf.com/manual/dell/high-performance-computing-solution-resources/reference-guide-english/page-17.html
# The network is a DGX-1's, four ports of 100 Gbit/s:
# https://www.naddod.com/blog/hpc-networking-delivering-high-performance-for-dgx-server
VOLTA = _links("nvlink", 150, gigabits=400)
# PCIe x16 is by its standard: 16 GT/s per lane in 4.0, 8 GT/s in 3.0. The network is that of a cloud's servers:
# 100 Gbit/s beside eight A10G (g5) by
# https://docs.aws.amazon.com/AWSEC2/latest/WindowsGuide/accelerated-computing-instances.html; beside L40S (g6e),
# L4 (g6) and T4 (g4dn) it is assumed.
A10G_LINKS = _links("pcie", 32, gigabits=100)
L4_LINKS = replace(A10G_LINKS, between_is_assumed=True)
L40S_LINKS = replace(_links("pcie", 32, gigabits=400), between_is_assumed=True)
T4_LINKS = replace(_links("pcie", 16, gigabits=100), between_is_assumed=True)
# Nobody publishes a server with these: PCIe 4.0 x16 for each, which few desktops have, and 10-Gbit Ethernet.
DESKTOP = replace(_links("pcie", 32, gigabits=10), within_is_assumed=True, between_is_assumed=True)

KNOWN: dict[str, Published] = {
    # https://resources.nvidia.com/en-us-gpu-resources/hpc-datasheet-sc23
    "h200": _cuda("NVIDIA H200", 143771, (9, 0), bandwidth=4800, fp32=67, bf16=989, fp16=989, links=HOPPER),
    # https://resources.nvidia.com/en-us-gpu-resources/h100-datasheet-24306 (SXM)
    "h100": _cuda("NVIDIA H100 80GB HBM3", 81559, (9, 0), bandwidth=3350, fp32=67, bf16=989, fp16=989, links=HOPPER),
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-nvidia-us-2188504-web.pdf
    "a100-80g": _cuda(
        "NVIDIA A100-SXM4-80GB", 81920, (8, 0), bandwidth=2039, fp32=19.5, bf16=312, fp16=312, links=AMPERE
    ),
    "a100-40g": _cuda(
        "NVIDIA A100-SXM4-40GB", 40960, (8, 0), bandwidth=1555, fp32=19.5, bf16=312, fp16=312, links=AMPERE
    ),
    # https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413
    "l40s": _cuda("NVIDIA L40S", 46068, (8, 9), bandwidth=864, fp32=91.6, bf16=362, fp16=362, links=L40S_LINKS),
    # https://resources.nvidia.com/en-us-data-center-overview/l4-gpu-datasheet (printed with sparsity: halved here)
    "l4": _cuda("NVIDIA L4", 23034, (8, 9), bandwidth=300, fp32=30.3, bf16=121, fp16=121, links=L4_LINKS),
    # https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf
    "a10g": _cuda("NVIDIA A10G", 23028, (8, 6), bandwidth=600, fp32=35, bf16=70, fp16=70, links=A10G_LINKS),
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf
    "t4": _cuda("Tesla T4", 15360, (7, 5), bandwidth=320, fp32=8.1, fp16=65, links=T4_LINKS),
    # https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf (SXM2)
    "v100": _cuda("Tesla V100-SXM2-16GB", 16160, (7, 0), bandwidth=900, fp32=15.7, fp16=125, links=VOLTA),
    # https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf (appendix A)
    "rtx-4090": _cuda(
        "NVIDIA GeForce RTX 4090", 24564, (8, 9), bandwidth=1008, fp32=82.6, bf16=165.2, fp16=165.2, links=DESKTOP
    ),
    # https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf (appendix A)
    "rtx-3090": _cuda(
        "NVIDIA GeForce RTX 3090", 24576, (8, 6), bandwidth=936, fp32=35.6, bf16=71, fp16=71, links=DESKTOP
    ),
    "rtx-3060": _cuda(
        "NVIDIA GeForce RTX 3060", 12288, (8, 6), bandwidth=360, fp32=12.7, bf16=25, fp16=25, links=DESKTOP
    ),
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
            f"like it; `recipe plan` takes what memory it has, --memory 24GiB"
        )
    return KNOWN[name.lower()]


def devices_of_host(device: Device, asked: int | None) -> int | None:
    """How many devices a host has: what is asked for, or what is usual; None if all processes share one device.

    Raises:
        UsageError: a number is asked for that would change nothing.
    """
    if device.kind == "cuda":
        return Links.per_host if asked is None else asked
    if asked is not None:
        raise UsageError(
            f"--gpus-per-node {asked} has no effect: the processes of {device.name} share one host; leave it out, or "
            f"name a GPU with --device"
        )
    return None


def links_of(device: Device, *, per_host: int | None = None, network: float | None = None) -> Links | None:
    """The links of a device in the list, by its own name or as torch calls it; None of another one.

    Args:
        device: what is planned for.
        per_host: devices of a host, in place of what is usual.
        network: Gbit/s of a host, over all of its ports together, in place of what is usual.

    Raises:
        UsageError: `network` is no rate, or would change nothing, because the device is not in the list.
    """
    if network is not None and not 0 < network < math.inf:
        raise UsageError(f"network is {network}, and must be a number of Gbit/s above 0")
    entry = next((entry for entry in KNOWN.values() if entry.device.name == device.name), None)
    if entry is None or entry.links is None:
        if network is not None:
            cure = "its processes share one host" if device.kind == "cpu" else "name one that is, with --device"
            raise UsageError(f"--network {network:g}: the links of {device.name} are not in the list; {cure}")
        return None
    links = replace(entry.links, per_host=per_host or entry.links.per_host)
    return links if network is None else replace(links, between_hosts=network / 8 * GIGA, between_is_assumed=False)


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
