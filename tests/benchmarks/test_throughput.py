"""A training step of a small model, where everything round the model shows most: bare loop, Trainer, toolkit.

    pytest tests/benchmarks/test_throughput.py --benchmark-only

Each contender is a process of its own, which waits for the word to take a step. `throughput.py`, which `make benchmark`
runs as well, has the figures of a large model.
"""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from tests.benchmarks.throughput import waiting
from toolkit.system.device import detect

ROUNDS = 40
ASKED = argparse.Namespace(
    model="gpt2-1M",
    block_size=256,
    micro_batch_size=8,
    steps=1000,
    warmup=5,
    document_length=0,
    bf16=detect().bf16,
)
CONTENDERS = ("bare, not compiled", "Trainer", "bare, the toolkit's step", "toolkit")


@pytest.mark.benchmark(group="a step of gpt2-1M, 2,048 tokens")
@pytest.mark.parametrize("name", CONTENDERS)
def test_step(benchmark: Any, name: str) -> None:
    with waiting(name, ASKED) as step:
        benchmark.pedantic(step, rounds=ROUNDS, warmup_rounds=5)
