"""How training stands, beside what the Trainer's own state says."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class TrainingStatus:
    """Time trained, and whether training has ended early or lacks an evaluation."""

    def __init__(self, *, evaluation_left_out: bool = False) -> None:
        self.evaluation_left_out = evaluation_left_out
        """Whether the evaluation of the last step is missing, because a signal left no time for it."""
        self.ended = False
        """Whether a callback ended training before its last step."""
        self._seconds_before = 0.0
        self._started = time.monotonic()

    @property
    def seconds_trained(self) -> float:
        """Time trained, over all attempts."""
        return self._seconds_before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint records of it."""
        return {
            "seconds_trained": self.seconds_trained,
            "evaluation_left_out": self.evaluation_left_out,
            "ended": self.ended,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count the time on from a checkpoint's; the rest, which decides whether to train at all, is known before."""
        self._seconds_before, self._started = float(state["seconds_trained"]), time.monotonic()
