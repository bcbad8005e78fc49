"""When a run logs, evaluates, saves and stops, and how it tells about it."""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import DefaultFlowCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit import processes
from toolkit.progress import CheckpointSaved, Evaluated, Listener, StepDone
from toolkit.recipe.training import Training
from toolkit.run_directory import RunDirectory
from toolkit.signals import StopRequest

if TYPE_CHECKING:
    from toolkit.trainer import RecipeTrainer

MOST_EVALUATIONS, FEWEST_EVALUATIONS = 10, 3
"""Evaluations in a run whose recipe does not say how often ..."""
EVALUATION_SHARE = 0.1
"""... as many as cost about this share of the training, in between; a step computes three times what a look does."""
LOGGED_STEPS = 200
"""Logged steps in a run whose recipe does not say how often."""
SPEED_WINDOW = 20
"""Steps that the shown tokens per second are the mean of."""


@dataclass(frozen=True)
class Cadence:
    """How often things happen, in optimizer steps."""

    total_steps: int
    logging_steps: int
    eval_steps: int | None
    """None where nothing is held out."""
    save_steps: int | None
    save_minutes: float | None

    @classmethod
    def of(cls, training: Training, *, total_steps: int, validation_blocks: int) -> Cadence:
        """The recipe's cadence, and a sensible one where it says nothing."""
        affordable = 3 * EVALUATION_SHARE * total_steps * training.global_batch_size / max(1, validation_blocks)
        evaluations = min(MOST_EVALUATIONS, max(FEWEST_EVALUATIONS, int(affordable)))
        return cls(
            total_steps=total_steps,
            logging_steps=training.logging_steps or max(1, total_steps // LOGGED_STEPS),
            eval_steps=(training.eval_steps or math.ceil(total_steps / evaluations)) if validation_blocks else None,
            save_steps=training.save_steps,
            save_minutes=training.save_minutes,
        )


class Schedule(DefaultFlowCallback):
    """Decides at the end of each step what is due, writes metrics.jsonl, and tells the listener.

    It takes the place of the Trainer's own flow, which takes its cadence from the checkpoint that it resumes;
    here the recipe's counts, and the clock counts too.
    """

    def __init__(self, cadence: Cadence, run: RunDirectory, listener: Listener, stop: StopRequest) -> None:
        self.cadence = cadence
        self.run = run
        self.listener = listener
        self.stop = stop
        self.trainer: RecipeTrainer | None = None
        self.resumed_from: Path | None = None
        self.stop_after: int | None = None
        """End this attempt after so many steps of the run, as a signal would."""
        self.last_save_step: int | None = None
        self._last_save = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque(maxlen=SPEED_WINDOW + 1)
        self._logged: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the running sums back, now that the Trainer has set them to zero."""
        assert self.trainer is not None
        self._recent.append((time.monotonic(), int(state.num_input_tokens_seen)))
        if self.resumed_from:
            self.trainer.restore_sums(self.resumed_from)
            self.last_save_step = state.global_step
            if self._evaluation_left_out(state.global_step):
                self.trainer.evaluate()
        self._last_save = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Say what is due."""
        cadence, step = self.cadence, state.global_step
        if self.stop_after is not None and step >= self.stop_after:
            self.stop.signal_number = self.stop.signal_number or signal.SIGTERM
        minutes = (time.monotonic() - self._last_save) / 60
        save_due = cadence.save_minutes is not None and minutes >= cadence.save_minutes
        stop, save_due = processes.any_of(self.stop.signal_number is not None, save_due)
        if stop and self.stop.signal_number is None:  # another process has received it
            self.stop.signal_number = signal.SIGTERM
        last = step >= cadence.total_steps or stop
        self._recent.append((time.monotonic(), int(state.num_input_tokens_seen)))
        control.should_log |= step == 1 or step % cadence.logging_steps == 0 or step >= cadence.total_steps
        control.should_evaluate |= cadence.eval_steps is not None and (
            step >= cadence.total_steps or (step % cadence.eval_steps == 0 and not last)
        )
        control.should_save |= last or (cadence.save_steps is not None and step % cadence.save_steps == 0) or save_due
        control.should_training_stop |= last
        if not control.should_log:
            self._tell(state)
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Nothing is due at the end of an epoch as such."""
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record a logged step."""
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        assert self.trainer is not None
        self._logged = logs
        self.run.append_metrics(
            {
                "step": state.global_step,
                "kind": "train",
                "loss": logs["loss"],
                "grad_norm": logs.get("grad_norm"),
                "learning_rate": logs["learning_rate"],
                "epoch": state.epoch,
                "tokens_seen": int(state.num_input_tokens_seen),
                "tokens_per_second": self._speed(),
                "seconds": self.trainer.seconds_trained,
            }
        )
        self._tell(state, loss=logs["loss"], learning_rate=logs["learning_rate"])

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record an evaluation."""
        assert metrics is not None
        assert self.trainer is not None
        if not state.is_world_process_zero:
            return
        loss = metrics["eval_loss"]
        perplexity = math.exp(loss) if loss < 700 else math.inf
        self.run.append_metrics(
            {
                "step": state.global_step,
                "kind": "eval",
                "eval_loss": loss,
                "perplexity": perplexity,
                "seconds": self.trainer.seconds_trained,
            }
        )
        self.listener(Evaluated(state.global_step, loss, perplexity))
        self._restart_clock(state)

    def _evaluation_left_out(self, step: int) -> bool:
        """Whether a signal, which leaves no time for it, came at a step that was to be evaluated."""
        due = self.cadence.eval_steps is not None and step % self.cadence.eval_steps == 0
        return due and not any(line["kind"] == "eval" and line["step"] == step for line in self.run.metrics())

    def saved(self, step: int, folder: Path, seconds: float) -> None:
        """Record a save; the trainer calls this once the checkpoint is safe on disk."""
        self._last_save = time.monotonic()
        self.last_save_step = step
        self.run.append_metrics({"step": step, "kind": "save", "seconds": seconds})
        self.listener(CheckpointSaved(step, folder, seconds))
        assert self.trainer is not None
        self._restart_clock(self.trainer.state)

    def _restart_clock(self, state: TrainerState) -> None:
        """Evaluations and saves are not steps: leave them out of the shown speed."""
        speed = self._speed()
        tokens = int(state.num_input_tokens_seen)
        self._recent.clear()
        if speed:  # keep the mean: one second at the speed so far
            self._recent.append((time.monotonic() - 1, int(tokens - speed)))
        self._recent.append((time.monotonic(), tokens))

    def _speed(self) -> float:
        (since, before), (now, tokens) = self._recent[0], self._recent[-1]
        return (tokens - before) / (now - since) if now > since else 0.0

    def _tell(self, state: TrainerState, *, loss: float | None = None, learning_rate: float | None = None) -> None:
        speed, seen, step = self._speed(), int(state.num_input_tokens_seen), state.global_step
        left = self.cadence.total_steps - step
        self.listener(
            StepDone(
                step=step,
                total_steps=self.cadence.total_steps,
                tokens_seen=seen,
                tokens_per_second=speed,
                remaining_seconds=left * (seen / step) / speed if speed else math.inf,
                loss=loss,
                learning_rate=learning_rate,
                last_save_step=self.last_save_step,
            )
        )
