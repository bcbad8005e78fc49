"""Which loss is a spike: one far above the losses of the steps before it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass

LOSS_HISTORY_STEPS = 100
"""Number of recent losses whose mean and standard deviation define a spike ..."""
MIN_HISTORY_STEPS = 20
"""... once there are at least this many."""
SPIKE_DEVIATIONS = 6.0
"""A loss this many standard deviations above their mean is a spike ..."""
MIN_RELATIVE_RISE = 0.1
"""... if it also exceeds the mean by this fraction, because on a plateau the deviation is close to 0."""


@dataclass(frozen=True)
class StepVerdict:
    """What is found of a step before the optimizer takes it."""

    loss: float
    norm: float | None
    """Of the gradient; None where that is looked at elsewhere."""
    mean: float
    """Of the losses before; infinity while there are too few."""
    deviation: float
    is_spike: bool


def verdict(loss: float, norm: float | None, history: Collection[float]) -> StepVerdict:
    """Judge a step by its finite loss and those before it."""
    mean, deviation = math.inf, 0.0
    if len(history) >= MIN_HISTORY_STEPS:
        mean, deviation = statistics.fmean(history), statistics.pstdev(history)
    is_spike = loss > mean + max(SPIKE_DEVIATIONS * deviation, MIN_RELATIVE_RISE * mean)
    return StepVerdict(loss, norm, mean, deviation, is_spike)
