"""Early stopping on the evaluation loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import Field

from toolkit.api import Callback, RunContext

if TYPE_CHECKING:
    from transformers import TrainerCallback


class EarlyStopping(Callback):
    """End training once the evaluation loss has stopped improving; the model is the last one, not the best."""

    patience: int = Field(default=3, ge=1)
    """Training ends after this many evaluations in a row without improvement."""
    threshold: float = Field(default=0.0, ge=0)
    """An improvement is a loss below the best so far by more than this."""

    def callbacks(self, run: RunContext) -> list[TrainerCallback]:
        """One callback, whose count and best loss are saved in the checkpoint."""
        return [_early_stopping(self, run)]


def _early_stopping(options: EarlyStopping, run: RunContext) -> TrainerCallback:
    """Why not transformers' own: its best is the Trainer's, which any improvement lowers however small, so that many
    small ones never reach the threshold; and after a resume it counts from zero, unless the Trainer restores every
    callback from the checkpoint.
    """
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    class EarlyStoppingState(TrainerCallback, ExportableState):
        def __init__(self) -> None:
            self.best: float | None = None
            self.waited = 0

        def state(self) -> dict[str, Any]:
            return {"args": {}, "attributes": {"best": self.best, "waited": self.waited}}

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Restore the count from the checkpoint; training from scratch starts at zero."""
            name = type(self).__name__
            saved = state.stateful_callbacks.get(name, {}).get("attributes", {}) if state.global_step else {}
            self.best, self.waited = saved.get("best"), saved.get("waited", 0)
            # The Trainer saves into an existing entry, and a checkpoint from before this callback has none.
            state.stateful_callbacks[name] = self.state()

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            loss = kwargs["metrics"].get("eval_loss")
            if loss is None:
                return
            # NaN compares as lower than nothing, so it never becomes the best.
            if loss < (math.inf if self.best is None else self.best - options.threshold):
                self.best, self.waited = loss, 0
                return
            self.waited += 1
            if self.waited >= options.patience and not control.should_training_stop:
                control.should_training_stop = True
                run.log.info(
                    "step %s: %s evaluations in a row brought no loss below %s, so training ends here",
                    state.global_step,
                    self.waited,
                    "infinity" if self.best is None else f"{self.best - options.threshold:.4f}",
                )

    return EarlyStoppingState()
