"""Attention of blocks that hold documents, forward and backward: within each document, against a mask.

    pytest tests/benchmarks/test_attention_of_documents.py --benchmark-only

The heads are those of GPT-2 124M; the documents are of 300 tokens on average, as long as chance has them.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

BATCH, HEADS, LENGTH, WIDTH, DOCUMENT = 4, 12, 1024, 64, 300


def borders() -> list[int]:
    """Where the documents begin in the line of all tokens, and its end; blocks end documents."""
    draw = random.Random(0)
    begins = {token for token in range(BATCH * LENGTH) if token % LENGTH == 0 or draw.random() < 1 / DOCUMENT}
    return [*sorted(begins), BATCH * LENGTH]


@pytest.mark.benchmark(group="attention of 4 x 1,024 tokens in documents of 300, forward and backward")
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("how", ["a mask", "within documents"])
def test_attention(benchmark: Any, how: str, precision: str) -> None:
    import torch

    from toolkit.system.device import detect
    from toolkit.training.document_attention import attention

    device = detect().kind
    if device == "cuda" and precision == "float32":
        pytest.skip("a GPU's kernels have no float32")
    begins = torch.tensor(borders(), dtype=torch.int32, device=device)
    mask: torch.Tensor = begins
    if how == "a mask":
        document = torch.bucketize(torch.arange(BATCH * LENGTH, device=device), begins, right=True).view(BATCH, LENGTH)
        mask = (document[:, None, :, None] == document[:, None, None, :]).tril()
    shape = (BATCH, LENGTH, 3, HEADS, WIDTH)
    inputs = torch.randn(shape, dtype=getattr(torch, precision), device=device, requires_grad=True)
    slope = torch.randn_like(inputs[:, :, 0])

    def step() -> None:
        inputs.grad = None
        query, key, value = inputs.transpose(1, 3).unbind(2)
        attention(torch.nn.Module(), query, key, value, mask)[0].backward(slope)
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(step, rounds=10, warmup_rounds=2)
