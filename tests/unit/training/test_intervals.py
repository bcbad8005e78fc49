"""How often a run logs, evaluates and saves: what the recipe says, or defaults by the length of the run."""

from __future__ import annotations

import dataclasses

import pytest

from toolkit.recipe.settings import Training
from toolkit.training.intervals import Intervals

EVEN = Intervals(total_steps=100, logging_steps=1, eval_steps=20, save_steps=50, save_minutes=None, keep_every=None)


def of(total_steps: int, validation_blocks: int, **settings: object) -> Intervals:
    training = Training.model_validate({"global_batch_size": 8, **settings})
    return Intervals.of(training, total_steps=total_steps, validation_blocks=validation_blocks)


def test_what_the_recipe_sets_is_taken_as_it_is() -> None:
    settings = {"logging_steps": 3, "eval_steps": 7, "save_steps": 11, "save_minutes": 2.5, "keep_every": 13}
    assert dataclasses.asdict(of(1000, 10, **settings)) == {"total_steps": 1000, **settings}


def test_without_a_cadence_it_saves_by_the_clock_alone() -> None:
    made = of(1000, 10)
    assert (made.save_steps, made.save_minutes, made.keep_every) == (None, 5.0, None)


@pytest.mark.parametrize(("total_steps", "logging_steps"), [(1, 1), (199, 1), (399, 1), (400, 2), (100_000, 500)])
def test_about_two_hundred_steps_are_logged(total_steps: int, logging_steps: int) -> None:
    assert of(total_steps, 10).logging_steps == logging_steps


@pytest.mark.parametrize(
    ("total_steps", "validation_blocks", "eval_steps"),
    [
        (1000, 1, 100),  # cheap: ten evaluations
        (1000, 240, 100),  # 1,000 steps of 8 blocks, three passes each: a tenth of that is ten times 240 blocks
        (1000, 241, 112),  # nine, rounded up to whole steps
        (1000, 480, 200),  # five
        (1000, 800, 334),  # three
        (1000, 10_000, 334),  # dear, and three all the same
        (2, 1, 1),  # more evaluations than steps
        (1, 10_000, 1),
    ],
)
def test_three_to_ten_evaluations_that_cost_about_a_tenth_of_training(
    total_steps: int, validation_blocks: int, eval_steps: int
) -> None:
    assert of(total_steps, validation_blocks).eval_steps == eval_steps


@pytest.mark.parametrize("settings", [{}, {"eval_steps": 5}])
def test_nothing_held_out_is_never_evaluated(settings: dict[str, int]) -> None:
    made = of(1000, 0, **settings)
    assert made.eval_steps is None
    assert [made.evaluations_left(step) for step in (1, 1000)] == [0, 0]


@pytest.mark.parametrize(
    ("step", "evaluations", "saves"),
    [(1, 5, 2), (19, 5, 2), (20, 5, 2), (21, 4, 2), (50, 3, 2), (51, 3, 1), (100, 1, 1)],
)
def test_evaluations_and_saves_that_are_left(step: int, evaluations: int, saves: int) -> None:
    assert (EVEN.evaluations_left(step), EVEN.saves_left(step)) == (evaluations, saves)


def test_the_last_step_is_evaluated_and_saved_whatever_the_cadence() -> None:
    uneven = Intervals(total_steps=7, logging_steps=1, eval_steps=3, save_steps=4, save_minutes=None, keep_every=2)
    assert [uneven.evaluations_left(step) for step in range(1, 8)] == [3, 3, 3, 2, 2, 2, 1]
    assert [uneven.saves_left(step) for step in range(1, 8)] == [4, 4, 3, 3, 2, 2, 1]


@pytest.mark.parametrize("save_steps", [None, 2, 3, 7])
@pytest.mark.parametrize("keep_every", [None, 2, 4, 5])
@pytest.mark.parametrize("total_steps", [1, 10, 12])
def test_saves_left_are_those_that_one_counts(total_steps: int, keep_every: int | None, save_steps: int | None) -> None:
    """A step that is due for two reasons is saved once."""
    due = {
        step
        for step in range(1, total_steps + 1)
        if step == total_steps or any(every and step % every == 0 for every in (save_steps, keep_every))
    }
    made = of(total_steps, 10, save_steps=save_steps, keep_every=keep_every)
    counted = [made.saves_left(step) for step in range(1, total_steps + 1)]
    assert counted == [len([one for one in due if one >= step]) for step in range(1, total_steps + 1)]
