"""Experiment trackers (wandb, mlflow, ...) may fail without costing a run: a network goes away, a key runs out.

One that fails before the first step ends the run with its message, while that costs nothing. One that fails later is
told of once, and is reported to no more in this attempt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from toolkit.errors import UnavailableError

EVENTS = tuple(name for name in vars(TrainerCallback) if name.startswith("on_"))
LOG = logging.getLogger("toolkit")


class TolerantTracker(TrainerCallback):
    """Passes every event on to a tracker for as long as it takes them."""

    def __init__(self, name: str, tracker: TrainerCallback) -> None:
        self.name = name
        self.tracker = tracker
        self.has_failed = False

    def pass_on(self, event: str, args: Any, state: Any, control: Any, **known: Any) -> Any:
        """Return what the tracker returns.

        Raises:
            UnavailableError: it fails before the first step.
        """
        if self.has_failed:
            return None
        try:
            return getattr(self.tracker, event)(args, state, control, **known)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if event in ("on_init_end", "on_train_begin"):
                raise UnavailableError(
                    f"training.report_to: {self.name} cannot be reported to: {reason}; log in to it, or leave it out"
                ) from error
            self.has_failed = True
            LOG.warning("%s failed, so nothing more is reported to it: %s; training continues", self.name, reason)
            return None


def _passing_on(event: str) -> Callable[..., Any]:
    def pass_on(self: TolerantTracker, args: Any, state: Any, control: Any, **known: Any) -> Any:
        return self.pass_on(event, args, state, control, **known)

    return pass_on


for _event in EVENTS:
    setattr(TolerantTracker, _event, _passing_on(_event))


def tolerant(callbacks: list[TrainerCallback]) -> list[TrainerCallback]:
    """The callbacks, with each tracker among them wrapped."""
    names = {callback: name for name, callback in INTEGRATION_TO_CALLBACK.items()}
    return [
        TolerantTracker(name, callback) if (name := names.get(type(callback))) else callback for callback in callbacks
    ]
