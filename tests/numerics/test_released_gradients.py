"""A step taken inside the backward pass is the step of the plain run, and no gradient outlives it."""

from pathlib import Path

import pytest
import torch

from tests.tiny import assert_same_run, resolved, train, write_recipe
from toolkit.errors import RecipeError, TrainingError
from toolkit.storage.run_directory import RunDirectory
from toolkit.testing.bench import Bench
from toolkit.training.optimizer_in_backward import OptimizerInBackward

UNCLIPPED = {"max_grad_norm": 0}


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_run_is_bit_identical(tmp_path: Path, optimizer: str) -> None:
    recipe = write_recipe(tmp_path, optimizer=optimizer, training=UNCLIPPED)
    plain, _ = train(recipe, name="plain")
    released, _ = train(recipe, "memory=[release-gradients]", name="released")
    assert_same_run(plain.folder, released.folder)
    norms = [[line.get("grad_norm") for line in RunDirectory(run.folder).metrics()] for run in (plain, released)]
    assert norms[0] == norms[1]


def test_few_gradients_are_there_at_a_time(tmp_path: Path) -> None:
    model, ids = Bench(tmp_path, rehearsal=False).model("gpt2"), Bench(tmp_path, rehearsal=False).batch()
    parameters, most = list(model.parameters()), []

    class Counting(torch.optim.SGD):
        def step(self, closure: object = None) -> None:
            most.append(sum(parameter.grad is not None for parameter in parameters))
            super().step()

    released = OptimizerInBackward(model, Counting(parameters, lr=0.1), check=lambda norm: None)
    model(input_ids=ids, labels=ids).loss.backward()
    assert len(most) == len(parameters)
    assert max(most) == 1
    assert not [parameter for parameter in parameters if parameter.grad is not None]
    assert released.norm() > 0
    assert released.norm() == 0


def test_a_gradient_that_is_no_number_stops_before_its_step(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))

    def refuse(norm: torch.Tensor) -> None:
        if not norm.isfinite():
            raise TrainingError(f"norm {norm}")

    module = torch.nn.Module()
    module.weight = weight
    OptimizerInBackward(module, torch.optim.SGD([weight], lr=0.1), check=refuse)
    with pytest.raises(TrainingError, match="norm inf"):
        (weight * float("inf")).sum().backward()
    assert weight.tolist() == [1, 1, 1]


def test_a_loss_that_is_no_number_stops_before_the_backward_pass(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, memory=["release-gradients"], training={**UNCLIPPED, "learning_rate": 1e38})
    with pytest.raises(TrainingError, match=r"step \d+ is not a finite number"):
        train(recipe)


@pytest.mark.parametrize(
    ("memory", "training", "cure"),
    [
        (["release-gradients"], {}, r"max_grad_norm: 0 \(clipping needs"),
        (["release-gradients", "small-batch"], UNCLIPPED, r"micro_batch_size: 4, the global batch"),
        (["release-gradients"], {**UNCLIPPED, "precision": "fp16"}, r"precision: bf16 or fp32"),
    ],
)
def test_what_forbids_it_is_said_at_its_line(tmp_path: Path, memory: list[str], training: dict, cure: str) -> None:
    recipe = write_recipe(tmp_path, memory=memory, training=training)
    with pytest.raises(RecipeError, match=rf"memory\[0\]: release-gradients cannot be used: .*{cure}"):
        resolved(recipe)


def test_one_micro_batch_is_no_accumulation(tmp_path: Path) -> None:
    memory = ["release-gradients", {"plugin": "small-batch", "micro_batch_size": 4}]
    assert resolved(write_recipe(tmp_path, memory=memory, training=UNCLIPPED)).training.release_gradients
