"""Weights in bfloat16 move by the steps that float32 weights would take, on average."""

from pathlib import Path

import pytest
import torch

from tests.tiny import losses, train, weights, write_recipe
from toolkit_plugins.memory.stochastic_rounding import StochasticRounding, round_stochastically


def test_the_mean_of_many_roundings_is_the_value() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([1.0, 1.0 + 2**-10, -3.3, 1e-20, 0.0])
    sums = torch.zeros(5, dtype=torch.float64)
    for _ in range(4000):
        rounded = torch.empty(5, dtype=torch.bfloat16)
        round_stochastically(values.clone(), into=rounded, generator=generator)
        assert bool(((rounded.float() - values).abs() <= values.abs() * 2**-7).all())
        sums += rounded.double()
    torch.testing.assert_close(sums / 4000, values.double(), rtol=3e-4, atol=1e-23)
    assert float(rounded[0]) == 1.0, "what bfloat16 holds is not rounded"


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (0,)])
def test_every_shape(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit_plugins.memory.stochastic_rounding.ELEMENTS_PER_DRAW", 4)
    values = torch.randn(shape).bfloat16()
    rounded = torch.empty_like(values).T if len(shape) == 2 else torch.empty_like(values)
    wanted = values.T if len(shape) == 2 else values
    round_stochastically(wanted.float(), into=rounded, generator=torch.Generator())
    assert torch.equal(rounded, wanted)


def test_steps_too_small_for_bfloat16_arrive() -> None:
    weight = torch.nn.Parameter(torch.ones(10_000, dtype=torch.bfloat16))
    nearest = torch.nn.Parameter(torch.ones(10_000, dtype=torch.bfloat16))
    optimizers = [StochasticRounding(torch.optim.SGD([weight], lr=1e-4), seed=0), torch.optim.SGD([nearest], lr=1e-4)]
    for _ in range(100):
        for parameter, optimizer in zip((weight, nearest), optimizers, strict=True):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            assert parameter.grad is not None
    assert nearest.detach().float().mean().item() == 1.0
    assert weight.detach().float().mean().item() == pytest.approx(1 - 100 * 1e-4, abs=2e-4)


def test_a_run_learns_as_the_plain_one_does(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model={"dropout": 0.0}, training={"max_steps": 20})
    plain, _ = train(recipe, name="plain")
    rounded, _ = train(recipe, "memory=[weights-in-bf16]", name="rounded")
    assert losses(rounded.folder)[-1][2] == pytest.approx(losses(plain.folder)[-1][2], rel=0.02)
    assert {tensor.dtype for tensor in weights(rounded.folder).values()} == {torch.bfloat16}
