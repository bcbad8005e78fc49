"""The arguments of learning-rate schedules: those that transformers takes, checked where the recipe is read."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from transformers import SchedulerType
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from tests.tiny import resolved, write_recipe
from toolkit.errors import RecipeError
from toolkit.recipe.schedules import SCHEDULE_ARGUMENTS

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
    ],
)
def test_what_the_schedule_would_refuse(tmp_path: Path, training: dict[str, Any], place: str, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        resolved(write_recipe(tmp_path, training=training))
    (problem,) = refused.value.problems
    assert problem.path == f"training.{place}"
    assert message in problem.message


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
