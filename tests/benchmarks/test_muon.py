"""An optimizer step of Muon on the hidden matrices of GPT-2 124M: ours against torch's own, and the device's rate.

    pytest tests/benchmarks/test_muon.py --benchmark-only

torch's Muon always multiplies in bfloat16, one matrix after the other, and steps each by itself; ours does so on a CPU
and batches alike matrices on a GPU. Its matrices are all (out, in), which it needs. The share is that of the measured
rate of a large product, with all else that a step does in its time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

LAYERS, WIDTH = 12, 768
SHAPES = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
ITERATIONS = 5


def flops() -> int:
    """Of the products in a step: two of (short, long) and one of (short, short) matrices in each iteration."""
    sides = [(min(shape), max(shape)) for shape in SHAPES]
    return LAYERS * ITERATIONS * sum(4 * short**2 * long + 2 * short**3 for short, long in sides)


@pytest.mark.benchmark(group="a step of Muon on the hidden matrices of GPT-2 124M", min_rounds=3)
@pytest.mark.parametrize("whose", ["torch's", "ours"])
def test_step(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], whose: str) -> None:
    import torch

    from toolkit.planning.roofline import product_rate
    from toolkit.system.device import detect
    from toolkit.testing.bench import Bench
    from toolkit_plugins.optimizer.muon import Muon

    device = detect()
    run = Bench(tmp_path, rehearsal=False).run(device=device)
    layers = [torch.nn.Linear(before, after, bias=False) for _ in range(LAYERS) for after, before in SHAPES]
    model = torch.nn.Sequential(*layers).to(device.kind)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = (
        Muon().build(model, learning_rate=1e-3, weight_decay=0.1, run=run)
        if whose == "ours"
        else torch.optim.Muon(model.parameters(), lr=0.02, weight_decay=0.1)
    )

    def step() -> None:
        optimizer.step()
        if device.kind == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(step, rounds=5, warmup_rounds=1)
    share = flops() / benchmark.stats.stats.min / product_rate(device, "bf16" if device.bf16 else "fp32")
    benchmark.extra_info["share of the product's rate"] = round(share, 3)
    with capsys.disabled():
        print(f"\nMuon, {whose}: {share:.0%} of the rate of a large matrix product")
