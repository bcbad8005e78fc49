"""What a run frees is kept for its next step, and is given back once memory is short."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROBE = """
import json, resource, sys
import torch
from toolkit.memory.allocator import FreedMemory
from toolkit.system.host_memory import resident_bytes

def step():  # as of a training step: two tensors above and eight below what glibc obtains by mmap
    kept = [torch.ones(12_000_000) for _ in range(2)] + [torch.ones(1_000_000) for _ in range(8)]

def faults(steps=3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps

torch.set_num_threads(1)
freed = FreedMemory(matters=sys.argv[1] == "matters")
step()
begun = resident_bytes()
with freed.retained():
    for _ in range(5):
        step()
    retained, held = faults(), resident_bytes()
    if sys.argv[2:]:
        freed.give_back()
        given_back = faults()
after = resident_bytes()
print(json.dumps({"faults": retained, "held": held - begun, "after": after - begun, "returned": freed.is_returned}))
"""
STEP_BYTES = 4 * (2 * 12_000_000 + 8 * 1_000_000)


def found(*words: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_step_takes_the_pages_of_the_one_before_and_the_end_of_the_run_returns_them() -> None:
    of_a_step = STEP_BYTES / 4096
    kept = found("matters")
    assert kept["faults"] < 0.1 * of_a_step
    assert kept["held"] > 0.9 * STEP_BYTES
    assert kept["after"] < 0.2 * STEP_BYTES
    usual = found("does not")
    assert usual["faults"] > 0.5 * of_a_step
    assert not usual["returned"]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_given_back_it_is_gone_at_once() -> None:
    given = found("matters", "short")
    assert given["returned"]
    assert given["after"] < 0.2 * STEP_BYTES
