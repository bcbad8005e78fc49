"""Speed of a run: tokens per second, the time left, and the grace period that it needs after SIGTERM."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

from toolkit.training.intervals import Intervals

SPEED_WINDOW_STEPS = 20
"""Steps over which the displayed tokens per second are averaged."""
STEPS_UNTIL_STEP_TIME_IS_KNOWN = 5
"""Steps after which the step time is known."""
FORWARD_SHARE = 1 / 3
"""Time of a forward pass as a share of a training step's: the backward pass computes twice as much."""
PROCESS_EXIT_SECONDS = 2.0
"""Time from the last save to the end of the process."""


class Pace:
    """Times the steps of one attempt."""

    def __init__(
        self,
        *,
        save_seconds: float,
        stall_seconds: float = 0.0,
        evaluation_tokens: int = 0,
        flops_per_token: Callable[[int], float] = lambda step: 0.0,
        device_flops: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`flops_per_token` are the model's at a step, and `device_flops` those per second of all devices."""
        self.evaluation_tokens = evaluation_tokens
        self._flops_at, self._device_flops = flops_per_token, device_flops
        self._flops_per_token = flops_per_token(1)
        self.evaluation_seconds: float | None = None
        """Duration of the last evaluation; until there is one, it is estimated from `evaluation_tokens`."""
        self.save_seconds = save_seconds
        """Duration of a save, estimated or measured; a run waits for its last one."""
        self.stall_seconds = stall_seconds
        """How long training waits for each other save."""
        self._clock = clock
        self._recent: deque[tuple[float, int]] = deque(maxlen=SPEED_WINDOW_STEPS + 1)
        self._step_begun = clock()
        self._step_seconds: list[float] = []

    def step_begins(self, step: int) -> None:
        """Start timing the step of this number."""
        self._step_begun, self._flops_per_token = self._clock(), self._flops_at(step)

    def step_ends(self) -> None:
        """Record the duration of the step."""
        self._step_seconds.append(self._clock() - self._step_begun)

    def seen(self, tokens: int) -> None:
        """Record how many tokens have been trained on by now."""
        self._recent.append((self._clock(), tokens))

    def restart(self, tokens: int) -> None:
        """Restart the speed window after an evaluation or a save, to leave its time out."""
        speed = self.tokens_per_second
        self._recent.clear()
        if speed:  # keep the average: one second at the speed so far
            self._recent.append((self._clock() - 1, int(tokens - speed)))
        self.seen(tokens)

    @property
    def tokens_per_second(self) -> float:
        """Mean over the last steps."""
        if not self._recent:  # no training, only a made-up evaluation
            return 0.0
        (since, before), (now, tokens) = self._recent[0], self._recent[-1]
        return (tokens - before) / (now - since) if now > since else 0.0

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilization over the last steps; None if the model's FLOPs or the device's rate are unknown."""
        known = self._flops_per_token and self._device_flops
        return self.tokens_per_second * self._flops_per_token / self._device_flops if known else None

    def remaining_seconds(self, intervals: Intervals, *, step: int, tokens_per_step: float) -> float | None:
        """Time left after this step, including its own evaluation and save if they are due."""
        speed = self.tokens_per_second
        if not speed:
            return None
        training = (intervals.total_steps - step) * tokens_per_step / speed
        evaluation = self.evaluation_seconds
        if evaluation is None:
            evaluation = FORWARD_SHARE * self.evaluation_tokens / speed
        saves = intervals.saves_left(step) - 1 + training / (60 * (intervals.save_minutes or math.inf))
        return training + intervals.evaluations_left(step) * evaluation + saves * self.stall_seconds + self.save_seconds

    def measured_step_seconds(self) -> float | None:
        """Median step time, once: after the step at which it becomes known; None after all others."""
        if len(self._step_seconds) != STEPS_UNTIL_STEP_TIME_IS_KNOWN:
            return None
        return statistics.median(self._step_seconds[1:])  # the first step warms up


def grace_seconds(*, step: float, save: float) -> int:
    """Grace period that a run needs after SIGTERM: one save may be in flight, and the last one follows it."""
    return math.ceil(step + 2 * save + PROCESS_EXIT_SECONDS)
