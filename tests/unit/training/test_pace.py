"""The speed of training and the time left, by a clock that the test moves."""

from __future__ import annotations

import pytest

from toolkit.training.intervals import Intervals
from toolkit.training.pace import Pace

CADENCE = Intervals(total_steps=100, logging_steps=1, eval_steps=20, save_steps=50, save_minutes=None, keep_every=None)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def paced(clock: Clock, *, steps: int) -> Pace:
    """After steps of one second and 1,000 tokens; writing a checkpoint takes 4 seconds."""
    pace = Pace(save_seconds=4.0, clock=clock)
    pace.seen(0)
    for step in range(1, steps + 1):
        clock.now += 1
        pace.seen(1000 * step)
    return pace


def test_the_time_left_counts_evaluations_and_saves() -> None:
    pace = paced(Clock(), steps=10)
    assert pace.remaining_seconds(CADENCE, step=10, tokens_per_step=1000) == pytest.approx(90 + 4)
    pace.stall_seconds, pace.evaluation_seconds = 1.5, 30.0
    # 90 steps, 5 evaluations, a save that is waited for as little as can be, and the last one to its end
    assert pace.remaining_seconds(CADENCE, step=10, tokens_per_step=1000) == pytest.approx(90 + 5 * 30 + 1.5 + 4)
    assert pace.remaining_seconds(CADENCE, step=100, tokens_per_step=1000) == pytest.approx(30 + 4)


def test_an_evaluation_that_was_not_measured_yet_is_reckoned_from_its_tokens() -> None:
    pace = paced(Clock(), steps=10)
    pace.evaluation_tokens = 60_000
    assert pace.remaining_seconds(CADENCE, step=10, tokens_per_step=1000) == pytest.approx(90 + 5 * 20 + 4)


def test_saves_by_the_clock_are_counted_too() -> None:
    pace = paced(Clock(), steps=10)
    pace.stall_seconds = 2.0
    by_clock = Intervals(
        total_steps=100, logging_steps=1, eval_steps=None, save_steps=None, save_minutes=0.5, keep_every=None
    )
    assert pace.remaining_seconds(by_clock, step=10, tokens_per_step=1000) == pytest.approx(90 + 3 * 2 + 4)


def test_an_evaluation_does_not_slow_the_shown_speed() -> None:
    clock = Clock()
    pace = paced(clock, steps=10)
    clock.now += 60
    pace.restart(10_000)
    clock.now += 1
    pace.seen(11_000)
    assert pace.tokens_per_second == pytest.approx(1000)


@pytest.mark.parametrize(("flops", "rate", "expected"), [(3e6, 1e10, 0.3), (0.0, 1e10, None), (3e6, 0.0, None)])
def test_mfu_is_the_models_share_of_the_devices_rate(flops: float, rate: float, expected: float | None) -> None:
    clock = Clock()
    pace = Pace(save_seconds=1.0, flops_per_token=lambda step: flops, device_flops=rate, clock=clock)
    pace.seen(0)
    clock.now += 1
    pace.seen(1000)
    assert pace.mfu == (None if expected is None else pytest.approx(expected))


def test_nothing_is_foretold_before_the_first_step() -> None:
    assert Pace(save_seconds=1.0).remaining_seconds(CADENCE, step=1, tokens_per_step=1000) is None
