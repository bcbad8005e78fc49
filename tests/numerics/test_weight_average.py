"""`training.ema_width`: training is what it was, and what is evaluated, saved and exported is the average."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import assert_same_run, from_, losses, train, train_in_two, weights, write_recipe
from toolkit.errors import UsageError
from toolkit.training.weight_average import AVERAGE, AveragingOptimizer

AVERAGED = {"ema_width": 0.1, "lr_scheduler_type": "constant", "save_steps": 3, "save_total_limit": 9}


def test_the_average_has_the_width_that_is_asked_for() -> None:
    """Step i of T counts for (i/T)^e less what step i - 1 counts for, in closed form."""
    width, steps = 0.1, 2000
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = AveragingOptimizer(torch.optim.SGD([weight], lr=1.0), width=width)
    for _ in range(steps):
        weight.grad = torch.full_like(weight, -1.0)  # at step i the weight is i
        optimizer.step()
    e = optimizer.exponent
    shares = [(i / steps) ** e - ((i - 1) / steps) ** e for i in range(1, steps + 1)]
    mean = sum(i * share for i, share in enumerate(shares, start=1))
    assert optimizer.state[weight][AVERAGE].item() == pytest.approx(mean, rel=1e-9)
    deviation = math.sqrt(sum((i - mean) ** 2 * share for i, share in enumerate(shares, start=1)))
    assert deviation == pytest.approx(width * steps, rel=0.01)
    optimizer.eval()
    optimizer.eval()
    assert weight.item() == pytest.approx(mean, rel=1e-9)
    optimizer.train()
    assert weight.item() == steps


def test_no_average_in_half_precision() -> None:
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    with pytest.raises(UsageError, match="needs weights in float32"):
        AveragingOptimizer(torch.optim.SGD([weight]), width=0.1)


def test_training_is_what_it_was_and_the_average_is_exported(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training=AVERAGED)
    averaged, _ = train(recipe, name="averaged")
    plain, _ = train(recipe, "training.ema_width=null", name="plain")
    assert trained(averaged.folder) == trained(plain.folder)
    assert losses(averaged.folder)[-1] != losses(plain.folder)[-1]  # the evaluation at the end
    last = averaged.folder / "checkpoints" / "checkpoint-8"
    state = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    exported, saved = weights(averaged.folder), load_file(last / "model.safetensors")
    assert all(torch.equal(exported[name], saved[name]) for name in exported)
    averages = {tensor.double().sum().item() for tensor in (entry[AVERAGE] for entry in state.values())}
    assert {tensor.double().sum().item() for tensor in exported.values()} == averages
    # A checkpoint between two evaluations holds the average, too.
    between = load_file(averaged.folder / "checkpoints" / "checkpoint-3" / "model.safetensors")
    raw = load_file(plain.folder / "checkpoints" / "checkpoint-3" / "model.safetensors")
    assert any(not torch.equal(between[name], raw[name]) for name in raw)


def trained(run: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({}, id="adamw"),
        pytest.param({"optimizer": "muon"}, id="muon"),
        pytest.param({"memory": ["release-gradients"], "training": {"max_grad_norm": 0}}, id="released"),
    ],
)
@pytest.mark.parametrize("stop_after", [4, 5])
def test_it_resumes_exactly(tmp_path: Path, sections: dict[str, Any], stop_after: int) -> None:
    """The stop after step 4 falls on an evaluation, and the one after step 5 on none."""
    training = {**AVERAGED, **sections.get("training", {})}
    recipe = write_recipe(tmp_path, **{**sections, "training": training})
    whole, _ = train(recipe, name="whole")
    resumed = train_in_two(recipe, name="resumed", stop_after=stop_after)
    assert_same_run(whole.folder, resumed.folder)


@pytest.mark.slow
def test_a_branch_begins_to_average_and_goes_on_from_averages(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={"save_steps": 2, "save_total_limit": 9})
    train(recipe)
    begun, _ = from_(recipe, "tiny@4", "training.ema_width=0.1", name="begun")
    assert trained(begun.folder) == [line for line in trained(tmp_path / "runs" / "tiny") if line[0] > 4]
    ended, _ = from_(recipe, "begun@6", "training.learning_rate=1e-4", name="ended")
    assert ended.steps == 8
