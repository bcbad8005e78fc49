"""What is due at a step's end, decided without training."""

from __future__ import annotations

import pytest

from toolkit.training.due import what_is_due
from toolkit.training.intervals import Intervals

INTERVALS = Intervals(total_steps=20, logging_steps=3, eval_steps=4, save_steps=6, save_minutes=None, keep_every=10)


@pytest.mark.parametrize(
    ("step", "request_", "expected"),
    [
        (1, "", "log"),
        (2, "", ""),
        (3, "", "log"),
        (4, "", "evaluate"),
        (6, "", "log save"),
        (10, "", "save"),
        (12, "", "log evaluate save"),
        (20, "", "log evaluate save stop"),
        (2, "save_requested", "save"),
        (4, "save_requested", "evaluate save"),
        (2, "ended", "save stop"),
        (4, "ended", "evaluate save stop"),
        (2, "signaled", "save stop"),
        # An evaluation could take longer than the time until SIGKILL, ...
        (4, "signaled", "skip_evaluation save stop"),
        (4, "signaled ended", "skip_evaluation save stop"),
        (4, "signaled save_requested", "skip_evaluation save stop"),
        # ... but with the last one the run is finished; if need be, it is cut short.
        (20, "signaled", "log evaluate save stop"),
        (20, "ended", "log evaluate save stop"),
    ],
)
def test_what_is_due(step: int, request_: str, expected: str) -> None:
    requests = {name: name in request_.split() for name in ("signaled", "save_requested", "ended")}
    due = vars(what_is_due(INTERVALS, step, **requests))
    assert {name for name, is_due in due.items() if is_due} == set(expected.split())


def test_the_last_step_is_evaluated_and_saved_whatever_the_intervals() -> None:
    none = Intervals(total_steps=7, logging_steps=5, eval_steps=5, save_steps=None, save_minutes=None, keep_every=None)
    due = [what_is_due(none, step, signaled=False, save_requested=False, ended=False) for step in range(1, 8)]
    assert [step for step, at_step in enumerate(due, start=1) if at_step.log] == [1, 5, 7]
    assert [step for step, at_step in enumerate(due, start=1) if at_step.evaluate] == [5, 7]
    assert [step for step, at_step in enumerate(due, start=1) if at_step.save and at_step.stop] == [7]


def test_without_held_out_data_there_is_no_evaluation() -> None:
    none = Intervals(total_steps=4, logging_steps=1, eval_steps=None, save_steps=1, save_minutes=None, keep_every=None)
    for step in range(1, 5):
        due = what_is_due(none, step, signaled=step == 3, save_requested=False, ended=False)
        assert not due.evaluate
        assert not due.skip_evaluation
