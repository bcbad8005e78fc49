"""Causal attention in bfloat16 on a CPU, forward and backward: torch's kernel against blocks of queries.

pytest tests/benchmarks/test_attention_in_blocks.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

SHAPES = [(32, 4, 64, 32), (8, 4, 256, 32), (4, 12, 512, 64), (4, 12, 1024, 64)]
"""Sequences, heads, tokens, width of a head: the first two as in the recipe quickstart, the others as in GPT-2 124M."""


@pytest.mark.benchmark(group="causal attention in bfloat16, forward and backward")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("how", ["torch's kernel", "in blocks"])
def test_attention(benchmark: Any, how: str, shape: tuple[int, ...]) -> None:
    import torch

    from toolkit.memory.allocator import FreedMemory
    from toolkit.training.cpu_attention import attention

    sequences, heads, tokens, width = shape
    inputs = torch.randn(sequences, tokens, 3, heads, width, dtype=torch.bfloat16, requires_grad=True)
    slope = torch.randn_like(inputs[:, :, 0])

    def step() -> None:
        inputs.grad = None
        query, key, value = inputs.transpose(1, 3).unbind(2)
        if how == "in blocks":
            attended, _ = attention(torch.nn.Module(), query, key, value, None)
        else:
            attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            attended = attended.transpose(1, 2)
        attended.backward(slope)

    with FreedMemory(matters=True).retained():
        benchmark.pedantic(step, rounds=10, warmup_rounds=2)
