"""NVIDIA's GPUs: the driver against torch's CUDA, free memory, and how several of them reach each other."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import formatting
from toolkit.doctor.examination import Finding

TAKEN_SHARE = 0.05
"""Share of a card's memory from which what others hold is told; a desktop takes less."""
QUERY = ("name", "driver_version", "memory.total", "memory.used", "compute_cap")
SECONDS = 10.0


@dataclass(frozen=True)
class Card:
    """A GPU as nvidia-smi lists it."""

    name: str
    driver: str
    total_bytes: int
    used_bytes: int
    """By all processes, before any of ours."""


def cards() -> list[Card] | None:
    """The GPUs that nvidia-smi lists; None if there is no nvidia-smi, or no driver that answers it."""
    if not (command := shutil.which("nvidia-smi")):
        return None
    asked = [command, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    return parsed(answer.stdout) if answer.returncode == 0 else None


def parsed(answer: str) -> list[Card]:
    """The cards in nvidia-smi's CSV; memory is in MiB there, and [N/A] where it is the host's."""
    found = []
    for line in answer.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(QUERY):
            total, used = (int(cell) * 2**20 if cell.isdigit() else 0 for cell in cells[2:4])
            found.append(Card(cells[0], cells[1], total, used))
    return found


def driver(
    seen: Sequence[Card] | None,
    facts: Mapping[str, Any],
    *,
    environ: Mapping[str, str] = os.environ,
    devices: Path = Path("/dev"),
) -> Iterator[Finding]:
    """Whether torch can use the GPUs that are here.

    Args:
        seen: what nvidia-smi lists; None if it cannot.
        facts: what torch says (`software.torch_facts`).
        environ: may hide the GPUs.
        devices: where the driver's device files are.
    """
    if not seen:
        if any(devices.glob("nvidia[0-9]*")):
            yield Finding(
                "problem",
                "there is an NVIDIA GPU, but no nvidia-smi that answers: a run would take the CPU",
                "in a container: docker run --gpus all, with NVIDIA_DRIVER_CAPABILITIES=compute,utility; on a host, "
                "reinstall the driver, or restart after an update of it",
            )
        else:
            yield Finding("ok", "no NVIDIA GPU here")
        return
    names = f"{len(seen)} x {seen[0].name}, driver {seen[0].driver}"
    if environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        hidden = f"{names}, hidden by CUDA_VISIBLE_DEVICES={environ['CUDA_VISIBLE_DEVICES']}"
        yield Finding("note", f"{hidden}: a run takes the CPU", "unset CUDA_VISIBLE_DEVICES")
    elif "version" in facts and not facts["cuda"]:
        yield Finding(
            "note",
            f"{names}, but torch {facts['version']} is built for CPUs: a run takes the CPU",
            "pip install --force-reinstall -c constraints.txt torch --index-url https://download.pytorch.org/whl/cu130 "
            "(or cu126, for older drivers)",
        )
    elif not facts.get("available"):
        yield Finding(
            "problem",
            f"{names}, which torch {facts.get('version', '')} cannot use: "
            f"{facts.get('error') or 'it finds no device'}{_reach(facts)}",
            "a newer driver, or a torch for an older CUDA: https://pytorch.org/get-started; or "
            "CUDA_VISIBLE_DEVICES= (empty), to train on the CPU",
        )
    elif unknown := _without_kernels(facts):
        yield Finding(
            "problem",
            f"{names}: torch {facts['version']} has no kernels for compute capability {unknown}",
            "another build of torch: https://pytorch.org/get-started",
        )
    else:
        yield Finding("ok", f"{names}; torch uses {formatting.counted(facts['count'], 'GPU')} by CUDA {facts['cuda']}")


def _reach(facts: Mapping[str, Any]) -> str:
    """What the driver can do at most, and what torch asks for."""
    version = facts.get("driver")
    if not version:
        return ""
    return f" (the driver reaches CUDA {version // 1000}.{version % 1000 // 10}, torch wants {facts['cuda']})"


def _without_kernels(facts: Mapping[str, Any]) -> str:
    """The compute capability of a GPU that torch has no code for, neither its own, an older of its generation, or PTX.

    https://docs.nvidia.com/cuda/ampere-compatibility-guide: binaries run on later minor versions, PTX on all later.
    """
    built = [name.partition("_") for name in facts.get("architectures", ())]
    numbers = [(kind, int(number[:-1]), int(number[-1])) for kind, _, number in built if number.isdigit()]
    for major, minor in facts.get("capabilities", ()):
        binary = any(kind == "sm" and high == major and low <= minor for kind, high, low in numbers)
        portable = any(kind == "compute" and (high, low) <= (major, minor) for kind, high, low in numbers)
        if numbers and not (binary or portable):
            return f"{major}.{minor}"
    return ""


def card_memory(seen: Sequence[Card]) -> Iterator[Finding]:
    """Memory of each GPU that other processes hold."""
    for number, card in enumerate(seen):
        free = card.total_bytes - card.used_bytes
        shown = f"GPU {number} has {formatting.size(free)} of {formatting.size(card.total_bytes)} free"
        if card.total_bytes and card.used_bytes > TAKEN_SHARE * card.total_bytes:
            yield Finding(
                "note",
                f"{shown}: other processes hold {formatting.size(card.used_bytes)}",
                "nvidia-smi lists them; end them, or choose another with CUDA_VISIBLE_DEVICES. `kill` what is left of "
                "an earlier run",
            )
        elif card.total_bytes:
            yield Finding("ok", shown)


def several(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """NCCL, and whether the GPUs reach each other's memory."""
    if not facts.get("nccl"):
        yield Finding(
            "problem", "this torch has no NCCL, so one run cannot use several GPUs", "install PyPI's torch for Linux"
        )
    elif facts["peers"]:
        yield Finding("ok", f"NCCL {facts['nccl']}; each GPU reaches the others' memory")
    else:
        yield Finding(
            "note",
            f"NCCL {facts['nccl']}, but the GPUs do not reach each other's memory: gradients go through the host's",
            "`nvidia-smi topo -m` shows how they are connected; in a virtual machine, ask for peer-to-peer access. If "
            "NCCL hangs: NCCL_P2P_DISABLE=1",
        )
