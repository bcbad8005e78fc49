"""What is due at the end of a step."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.training.intervals import Intervals


@dataclass(frozen=True)
class Due:
    """What is due at the end of a step."""

    log: bool
    evaluate: bool
    skip_evaluation: bool
    """Whether an evaluation is left to the next attempt: it could outlast the grace period."""
    save: bool
    stop: bool


def what_is_due(intervals: Intervals, step: int, *, signaled: bool, save_requested: bool, ended: bool) -> Due:
    """Decide what is due.

    Args:
        intervals: those of the run.
        step: the number of the step, from 1.
        signaled: whether a signal asks to stop.
        save_requested: whether a save is due by the clock, or asked for by a signal.
        ended: whether a callback ends training.
    """
    last = step >= intervals.total_steps
    evaluate = intervals.eval_steps is not None and (last or step % intervals.eval_steps == 0)
    skip_evaluation = evaluate and signaled and not last
    stop = last or signaled or ended
    return Due(
        log=step == 1 or last or step % intervals.logging_steps == 0,
        evaluate=evaluate and not skip_evaluation,
        skip_evaluation=skip_evaluation,
        save=stop
        or save_requested
        or any(every is not None and step % every == 0 for every in (intervals.save_steps, intervals.keep_every)),
        stop=stop,
    )
