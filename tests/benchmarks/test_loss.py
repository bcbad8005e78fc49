"""The head and the loss of GPT-2, forward and backward: ours in chunks against whole logits and torch's own chunks.

    pytest tests/benchmarks/test_loss.py --benchmark-only

4 x 1,024 tokens of width 768 and 50,257 words, with bfloat16 products where the hardware has them and weights in
float32. `peak MB` is what a step takes beside the weights and the inputs: their gradients, copies and logits.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

TOKENS, WIDTH, VOCABULARY, CHUNK = 4096, 768, 50257, 256
WAYS = (
    "whole logits",
    "whole logits, compiled",
    "whole logits, as the toolkit compiles them on a CPU",
    "torch's chunks",
    "ours",
    "ours, compiled",
)


def step_of(how: str) -> tuple[Callable[[], None], str]:
    """One forward and backward pass, and the kind of the device that it runs on."""
    import torch
    from torch.nn import functional

    from toolkit.system.device import detect
    from toolkit.training.cpu_cross_entropy import summed_cross_entropy
    from toolkit_plugins.memory.chunked_cross_entropy import ChunkedCrossEntropy

    device = detect()
    dtype = torch.bfloat16 if device.bf16 else torch.float32
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False, device=device.kind)
    hidden = torch.randn(TOKENS, WIDTH, device=device.kind, requires_grad=True)
    targets = torch.randint(VOCABULARY, (TOKENS,), device=device.kind)
    ours = ChunkedCrossEntropy(
        head, chunk_size=CHUNK, dtype=dtype, on_gpu=device.kind == "cuda", compiled=how.endswith("compiled")
    )

    def loss() -> torch.Tensor:
        if how.startswith("ours"):
            return ours(hidden, targets) / TOKENS
        cast, weight = hidden.to(dtype), head.weight.to(dtype)
        if how == "torch's chunks":
            return functional.linear_cross_entropy(cast, weight, targets, options=torch.nn.LinearCrossEntropyOptions())
        logits = functional.linear(cast, weight)
        if how == "whole logits, as the toolkit compiles them on a CPU":
            return summed_cross_entropy(logits, targets) / TOKENS
        return functional.cross_entropy(logits.float(), targets)

    whole = torch.compile(loss) if how.startswith("whole logits, ") else loss

    def step() -> None:
        whole().backward()
        hidden.grad = head.weight.grad = None
        if device.kind == "cuda":
            torch.cuda.synchronize()

    return step, device.kind


@pytest.mark.benchmark(group="head and loss of GPT-2, 4,096 tokens")
@pytest.mark.parametrize("how", WAYS)
def test_loss(benchmark: Any, capsys: pytest.CaptureFixture[str], how: str) -> None:
    import torch

    if how == "torch's chunks" and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        pytest.skip("needs torch 2.13")
    step, _ = step_of(how)
    benchmark.pedantic(step, rounds=5, warmup_rounds=2)
    # In a process of its own, where the peak is that of this step.
    command = [sys.executable, "-m", "tests.benchmarks.test_loss", how]
    peak = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    benchmark.extra_info["peak MB"] = peak
    with capsys.disabled():
        print(f"\n{how}: {1000 * benchmark.stats.stats.min:,.0f} ms, {peak:,} MB")


if __name__ == "__main__":
    import torch

    from toolkit.system.host_memory import peak_resident_bytes, resident_bytes

    step, kind = step_of(sys.argv[1])
    step()  # compiled, where it is compiled
    before = torch.cuda.memory_allocated() if kind == "cuda" else resident_bytes()
    step()
    peak = torch.cuda.max_memory_allocated() if kind == "cuda" else peak_resident_bytes()
    print((peak - before) // 10**6)
