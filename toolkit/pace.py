"""How fast a run is: tokens per second, the time left, and what it needs between SIGTERM and its end."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

from toolkit.cadence import Cadence

SPEED_WINDOW = 20
"""Steps that the shown tokens per second are the mean of."""
MEASURED_STEPS = 5
"""Steps after which it is known how long one takes."""
FORWARD_SHARE = 1 / 3
"""Of a training step's time, what its tokens take in an evaluation: a backward pass computes twice a forward pass."""
LEAVING_SECONDS = 2.0
"""From the last save to the end of the process."""


class Pace:
    """Watches the steps of one attempt by the clock."""

    def __init__(self, *, save_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.evaluation_tokens = 0
        self.evaluation_seconds: float | None = None
        """What the last evaluation took; reckoned from its tokens until there was one."""
        self.save_seconds = save_seconds
        """What writing a checkpoint takes, as far as is known; a run waits for its last one."""
        self.stall_seconds = 0.0
        """What training waits for a save in between."""
        self._clock = clock
        self._recent: deque[tuple[float, int]] = deque(maxlen=SPEED_WINDOW + 1)
        self._step_begun = clock()
        self._step_seconds: list[float] = []

    def step_begins(self) -> None:
        """Look at the clock."""
        self._step_begun = self._clock()

    def step_ends(self) -> None:
        """Look at it again."""
        self._step_seconds.append(self._clock() - self._step_begun)

    def seen(self, tokens: int) -> None:
        """So many tokens have been trained on by now."""
        self._recent.append((self._clock(), tokens))

    def restart(self, tokens: int) -> None:
        """Leave out what was no step: an evaluation, or a save."""
        speed = self.tokens_per_second
        self._recent.clear()
        if speed:  # keep the mean: one second at the speed so far
            self._recent.append((self._clock() - 1, int(tokens - speed)))
        self.seen(tokens)

    @property
    def tokens_per_second(self) -> float:
        """Over the last steps."""
        if not self._recent:  # an evaluation that is made up for, and no training
            return 0.0
        (since, before), (now, tokens) = self._recent[0], self._recent[-1]
        return (tokens - before) / (now - since) if now > since else 0.0

    def remaining_seconds(self, cadence: Cadence, *, step: int, tokens_per_step: float) -> float | None:
        """What the run will still take after this step, whose evaluation and save may be due."""
        speed = self.tokens_per_second
        if not speed:
            return None
        training = (cadence.total_steps - step) * tokens_per_step / speed
        evaluation = self.evaluation_seconds
        if evaluation is None:
            evaluation = FORWARD_SHARE * self.evaluation_tokens / speed
        saves = cadence.saves_left(step) - 1 + training / (60 * (cadence.save_minutes or math.inf))
        return training + cadence.evaluations_left(step) * evaluation + saves * self.stall_seconds + self.save_seconds

    def measured_step_seconds(self) -> float | None:
        """How long a step takes, told once: when that is known."""
        if len(self._step_seconds) != MEASURED_STEPS:
            return None
        return statistics.median(self._step_seconds[1:])  # the first step warms up


def grace_seconds(*, step: float, save: float) -> int:
    """What a run needs between SIGTERM and its end: a write may be in flight, and the last one follows it."""
    return math.ceil(step + 2 * save + LEAVING_SECONDS)
