"""The arguments of learning-rate schedules: those that transformers takes, checked where the recipe is read."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from transformers import SchedulerType
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from tests.tiny import resolved, train, write_recipe
from toolkit.errors import RecipeError
from toolkit.recipe.schedules import SCHEDULE_ARGUMENTS

DECAYS = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 8}}
OWN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
"""What the Trainer fills in itself."""


@pytest.mark.parametrize("schedule", SCHEDULE_ARGUMENTS)
def test_they_are_those_of_transformers(schedule: str) -> None:
    taken = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(schedule)]).parameters
    assert set(SCHEDULE_ARGUMENTS[schedule]) == set(taken) - OWN


@pytest.mark.parametrize(
    ("training", "place", "message"),
    [
        ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_kwargs", "lr_scheduler_kwargs: {num_decay_steps"),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_step": 2}},
            "lr_scheduler_kwargs.num_decay_step",
            "did you mean 'num_decay_steps'?",
        ),
        (
            {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {"num_decay_steps": 2}},
            "lr_scheduler_kwargs.num_decay_steps",
            "constant_with_warmup takes no argument 'num_decay_steps'; remove it",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs", "min_lr_rate: 0.1"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5, "min_lr_rate": 0.1}},
            "lr_scheduler_kwargs",
            "one of the two",
        ),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": -3}},
            "lr_scheduler_kwargs.num_decay_steps",
            "1 or more; this is -3",
        ),
        (
            {**DECAYS, "max_steps": 10, "warmup_steps": 0.25},
            "lr_scheduler_kwargs.num_decay_steps",
            "a decay over 8 steps after a warm-up of 3 steps is too long for a run of 10 steps",
        ),
        (
            {"warmup_block_size": 8, "warmup_block_steps": 10, "max_steps": 10},
            "warmup_block_steps",
            "make it fewer than 10",
        ),
        ({"warmup_steps": 1.5}, "warmup_steps", "a whole number of steps, or a share of all steps below 1"),
        ({"torch_compile": "ture"}, "torch_compile", "write true, false or auto; this is 'ture'"),
    ],
)
def test_what_the_schedule_would_refuse(tmp_path: Path, training: dict[str, Any], place: str, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        resolved(write_recipe(tmp_path, training=training))
    (problem,) = refused.value.problems
    assert problem.path == f"training.{place}"
    assert message in problem.message


def test_a_run_whose_length_the_data_decides_is_checked_once_that_is_there(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training={**DECAYS, "num_train_epochs": 1, "max_steps": None, "warmup_steps": 1000})
    resolved(recipe)
    with pytest.raises(RecipeError, match="after a warm-up of 1,000 steps is too long for a run of"):
        train(recipe)


def test_what_it_takes(tmp_path: Path) -> None:
    for training in (
        {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_decay_steps": 2, "decay_type": "1-sqrt"},
        },
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
    ):
        assert resolved(write_recipe(tmp_path, training=training)).training.lr_scheduler_type
