"""How often a run logs, evaluates and saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolkit.recipe.settings import Training

MOST_EVALUATIONS, FEWEST_EVALUATIONS = 10, 3
"""Bounds on the number of evaluations, if the recipe does not set eval_steps ..."""
EVALUATION_COMPUTE_SHARE = 0.1
"""... between them, as many as cost about this share of training; a step computes three times a forward pass."""
DEFAULT_LOGGED_STEPS = 200
"""Logged steps in a run, if the recipe does not set logging_steps."""


@dataclass(frozen=True)
class Intervals:
    """How often things happen, in optimizer steps."""

    total_steps: int
    logging_steps: int
    eval_steps: int | None
    """None if nothing is held out."""
    save_steps: int | None
    save_minutes: float | None
    keep_every: int | None

    @classmethod
    def of(cls, training: Training, *, total_steps: int, validation_blocks: int) -> Intervals:
        """The recipe's cadence, with sensible defaults where it says nothing."""
        affordable = 3 * EVALUATION_COMPUTE_SHARE * total_steps * training.global_batch_size / max(1, validation_blocks)
        evaluations = min(MOST_EVALUATIONS, max(FEWEST_EVALUATIONS, int(affordable)))
        return cls(
            total_steps=total_steps,
            logging_steps=training.logging_steps or max(1, total_steps // DEFAULT_LOGGED_STEPS),
            eval_steps=(training.eval_steps or math.ceil(total_steps / evaluations)) if validation_blocks else None,
            save_steps=training.save_steps,
            save_minutes=training.save_minutes,
            keep_every=training.keep_every,
        )

    def evaluations_left(self, step: int) -> int:
        """Evaluations due at this step or later; the last step always has one."""
        if self.eval_steps is None:
            return 0
        return self._multiples_left(self.eval_steps, step) + (self.total_steps % self.eval_steps != 0)

    def saves_left(self, step: int) -> int:
        """Saves due at this step or later, not counting those by the clock; the last step always has one."""
        counts = [every for every in (self.save_steps, self.keep_every) if every is not None]
        left = sum(self._multiples_left(every, step) for every in counts)
        if len(counts) == 2:
            left -= self._multiples_left(math.lcm(*counts), step)
        return left + all(self.total_steps % every for every in counts)

    def _multiples_left(self, every: int, step: int) -> int:
        """Multiples of `every` from this step to the last."""
        return self.total_steps // every - (step - 1) // every
