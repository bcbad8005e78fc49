"""What is judged on the device is what the host would judge, and what the optimizer leaves out is as if never asked."""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Any

import pytest
import torch

from toolkit.training.device_verdict import DeviceVerdict, leaves_steps_out
from toolkit.training.loss_spike import LOSS_HISTORY_STEPS, StepVerdict, verdict
from toolkit.training.weight_average import AveragingOptimizer

CPU = torch.device("cpu")


def sequence(seed: int) -> list[float]:
    """Losses of 260 steps: falling, a plateau, spikes alone and in a row, infinity and none at all."""
    draw = random.Random(seed)
    falling = [math.exp(-step / 60) + 2 + draw.gauss(0, 0.02) for step in range(200)]
    losses = [*falling, *[falling[-1]] * 60]
    for step in draw.sample(range(20, 260), 12):
        losses[step] *= draw.choice([1.05, 1.3, 3.0, 40.0])
    for step in draw.sample(range(20, 250), 2):
        losses[step : step + 4] = [9.0] * 4
    losses[draw.randrange(260)] = math.inf
    losses[draw.randrange(260)] = math.nan
    return [float(torch.tensor(loss)) for loss in losses]


def stepped(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, loss: float) -> None:
    """A step whose gradient is as bad as its loss."""
    weight.grad = torch.full_like(weight, loss)
    optimizer.step()


def made(betas: tuple[float, float] = (0.9, 0.99)) -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 7))
    return weight, torch.optim.AdamW([weight], lr=0.01, betas=betas, weight_decay=0.1, fused=True)


@pytest.mark.parametrize("keeps_spikes", [False, True])
@pytest.mark.parametrize("resumed_at", [None, 10, 137])
@pytest.mark.parametrize("seed", range(2))
def test_it_decides_as_the_host_does(seed: int, resumed_at: int | None, keeps_spikes: bool) -> None:
    history: deque[float] = deque(maxlen=LOSS_HISTORY_STEPS)
    (weight, told), (by_host, plain) = made(), made()
    device = DeviceVerdict(told, (), device=CPU, skips_spikes=not keeps_spikes, keeps_spikes=keeps_spikes)
    found: list[bool] = []
    for step, loss in enumerate(sequence(seed)):
        if step == resumed_at:
            device = DeviceVerdict(told, history, device=CPU, skips_spikes=not keeps_spikes, keeps_spikes=keeps_spikes)
        device.judge(torch.tensor(loss), torch.tensor(2 * loss))
        stepped(weight, told, loss)
        seen = device.read()
        expected = verdict(loss, 2 * loss, history)
        found.append(expected.is_spike)
        assert repr((seen.loss, seen.norm, seen.is_spike)) == repr((loss, 2 * loss, expected.is_spike))
        assert (seen.mean, seen.deviation) == pytest.approx((expected.mean, expected.deviation), rel=1e-9, abs=1e-9)
        if (not expected.is_spike or keeps_spikes) and math.isfinite(loss):
            history.append(loss)
            stepped(by_host, plain, loss)
    assert 4 <= sum(found) < 60
    assert torch.equal(weight, by_host)
    assert all(torch.equal(value, plain.state[by_host][name]) for name, value in told.state[weight].items())


@pytest.mark.parametrize("norm", [None, 1.5, torch.tensor(math.inf)])
def test_a_gradient_that_is_not_finite_is_not_taken_whatever_the_loss(norm: Any) -> None:
    weight, optimizer = made()
    before = weight.detach().clone()
    device = DeviceVerdict(optimizer, (), device=CPU, skips_spikes=False, keeps_spikes=True)
    device.judge(torch.tensor(1.0), norm)
    stepped(weight, optimizer, 1.0)
    assert device.read() == StepVerdict(1.0, norm if norm is None else float(norm), math.inf, 0.0, is_spike=False)
    assert torch.equal(before, weight.detach()) is isinstance(norm, torch.Tensor)


def test_a_resume_in_the_middle_gives_every_bit_of_the_threshold() -> None:
    losses = sequence(7)[:150]
    whole, resumed, history = [], [], deque[float](maxlen=LOSS_HISTORY_STEPS)
    (_, one), (_, other) = made(), made()
    through = DeviceVerdict(one, (), device=CPU, skips_spikes=False, keeps_spikes=True)
    for step, loss in enumerate(filter(math.isfinite, losses)):
        if step % 31 == 0:
            again = DeviceVerdict(other, history, device=CPU, skips_spikes=False, keeps_spikes=True)
        for device, verdicts in ((through, whole), (again, resumed)):
            device.judge(torch.tensor(loss), None)
            verdicts.append(device.read())
        history.append(loss)
    assert whole == resumed


def test_only_a_fused_adam_alone_can_be_told() -> None:
    layer = torch.nn.Linear(3, 3)
    weights = list(layer.parameters())
    fused = torch.optim.AdamW(weights, fused=True)
    assert leaves_steps_out(fused)
    assert leaves_steps_out(torch.optim.Adam(weights, fused=True))

    class Own(torch.optim.AdamW):
        pass

    others = [
        torch.optim.AdamW(weights),
        torch.optim.SGD(weights, fused=True),
        Own(weights, fused=True),
        AveragingOptimizer(fused, width=0.1),
    ]
    assert not any(map(leaves_steps_out, others))
