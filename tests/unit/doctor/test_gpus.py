"""GPUs that torch cannot use, that others hold, or that do not reach each other; told from what nvidia-smi answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toolkit.doctor import gpus

H100 = "NVIDIA H100 80GB HBM3, 570.86.15, 81559, 4, 9.0\n"
BUSY = "NVIDIA H100 80GB HBM3, 570.86.15, 81559, 60000, 9.0\n"
GOOD: dict[str, Any] = {
    "version": "2.13.0",
    "cuda": "13.0",
    "available": True,
    "count": 1,
    "driver": 13000,
    "error": "",
    "architectures": ["sm_80", "sm_90", "compute_120"],
    "capabilities": [(9, 0)],
    "peers": True,
    "nccl": "2.28.3",
}


@pytest.mark.parametrize(
    ("answer", "facts", "environ", "level", "words"),
    [
        ("", {}, {}, "ok", "no NVIDIA GPU here"),
        (H100, {}, {}, "ok", "torch uses 1 GPU by CUDA 13.0"),
        (H100, {"cuda": None}, {}, "note", "is built for CPUs"),
        (H100, {}, {"CUDA_VISIBLE_DEVICES": ""}, "note", "hidden by CUDA_VISIBLE_DEVICES="),
        (
            H100,
            {"available": False, "driver": 12040, "error": "The NVIDIA driver on your system is too old"},
            {},
            "problem",
            "is too old (the driver reaches CUDA 12.4, torch wants 13.0)",
        ),
        (H100, {"capabilities": [(7, 0)]}, {}, "problem", "no kernels for compute capability 7.0"),
        (H100, {"capabilities": [(8, 6)]}, {}, "ok", "torch uses"),  # by the code for 8.0
        (H100, {"capabilities": [(12, 1)]}, {}, "ok", "torch uses"),  # by PTX
    ],
)
def test_whether_torch_can_use_what_nvidia_smi_lists(
    answer: str, facts: dict[str, Any], environ: dict[str, str], level: str, words: str, tmp_path: Path
) -> None:
    (found,) = gpus.driver(gpus.parsed(answer), GOOD | facts, environ=environ, devices=tmp_path)
    assert found.level == level
    assert words in found.found
    assert level == "ok" or found.cure


def test_a_gpu_without_nvidia_smi_would_be_overlooked(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    (found,) = gpus.driver(None, GOOD, environ={}, devices=tmp_path)
    assert found.level == "problem"
    assert "NVIDIA_DRIVER_CAPABILITIES" in found.cure


def test_memory_that_others_hold() -> None:
    free, taken = gpus.card_memory(gpus.parsed(H100 + BUSY))
    assert (free.level, taken.level) == ("ok", "note")
    assert "GPU 1 has 22.6 GB of 85.5 GB free: other processes hold 62.9 GB" in taken.found


@pytest.mark.parametrize(("facts", "level"), [({}, "ok"), ({"peers": False}, "note"), ({"nccl": None}, "problem")])
def test_several_gpus(facts: dict[str, Any], level: str) -> None:
    (found,) = gpus.several(GOOD | facts)
    assert found.level == level
    assert level == "ok" or found.cure


def test_lines_that_are_no_cards_are_skipped() -> None:
    assert gpus.parsed("\nNo devices were found\n") == []
    (card,) = gpus.parsed("NVIDIA GB10, 580.95.05, [N/A], [N/A], 12.1\n")
    assert card.total_bytes == 0
