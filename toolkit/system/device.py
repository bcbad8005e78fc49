"""Detects the device that this machine computes with, without importing torch.

torch has the last word: at the start of a run or a plan, `lifecycle.environment.check_device` checks that it can use
what was found here. This module exists because memory strategies are resolved before torch, which takes seconds, is
imported.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from toolkit.errors import UnavailableError
from toolkit.system import control_group

BF16_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags in /proc/cpuinfo that mean native bfloat16 matrix products (x86's two, and Arm's)."""


@dataclass(frozen=True)
class Device:
    """The accelerator of this process, or else the CPU; detected without importing torch."""

    kind: Literal["cpu", "cuda", "mps"]
    name: str
    memory_bytes: int
    count: int = 1
    bf16: bool = False
    """Whether the hardware multiplies bfloat16 matrices natively."""
    compute_capability: tuple[int, int] | None = None
    """CUDA's (major, minor); None on other devices."""


def detect() -> Device:
    """Return the device that torch will use by default: the first visible CUDA GPU, Apple's GPU, or the CPU.

    Raises:
        UnavailableError: the driver hangs.
    """
    return _cuda() or _mps() or _cpu()


def _torch_has_cuda() -> bool:
    """Whether the installed torch was built with CUDA; PyPI's Linux wheels are, and have no local version suffix."""
    try:
        return "+cpu" not in metadata.version("torch") and platform.system() == "Linux"
    except metadata.PackageNotFoundError:
        return False


def _cuda() -> Device | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not _torch_has_cuda() or visible in ("", "-1") or not (query := shutil.which("nvidia-smi")):
        return None
    command = [query, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(
            "nvidia-smi does not answer; restart the machine or its driver, or set CUDA_VISIBLE_DEVICES= (empty) to "
            "train on the CPU"
        ) from error
    cards = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if "," in line]
    if answer.returncode != 0 or not cards:
        return None
    chosen = [int(part) for part in visible.split(",") if part.isdigit()] if visible else list(range(len(cards)))
    chosen = [index for index in chosen if index < len(cards)] or [0]
    name, mebibytes, capability = cards[chosen[0]]
    major, minor = (int(part) for part in capability.split("."))
    return Device(
        kind="cuda",
        name=name,
        memory_bytes=int(mebibytes) * 2**20,
        count=len(chosen),
        bf16=major >= 8,
        compute_capability=(major, minor),
    )


def _mps() -> Device | None:
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return None
    return Device(kind="mps", name="Apple GPU", memory_bytes=_host_memory_bytes(), bf16=True)


def _cpu() -> Device:
    name, flags = platform.processor() or platform.machine(), set[str]()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    return Device(kind="cpu", name=name, memory_bytes=_host_memory_bytes(), bf16=bool(flags & BF16_CPU_FLAGS))


def _host_memory_bytes() -> int:
    """The memory that this process may use: the container's limit where there is one, else the host's."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = control_group.limit_bytes()
    return host if limit is None else min(host, limit)
