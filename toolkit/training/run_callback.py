"""Flow control of the Trainer: what is due at the end of a step (log, evaluation, save, stop), and its reporting."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import DefaultFlowCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.errors import UnavailableError
from toolkit.events import CheckpointSaved, Evaluated, Listener, Message, StepDone
from toolkit.formatting import counted, duration
from toolkit.memory.oom_retry import SmallerBatch
from toolkit.storage.async_saver import Saved
from toolkit.storage.metrics_log import MetricsLog
from toolkit.storage.run_directory import RunDirectory
from toolkit.system import distributed
from toolkit.system.host_memory import peak_bytes, resident_bytes
from toolkit.system.signals import EndedByEvaluation, EvaluationLeftOut, StopRequest
from toolkit.training.intervals import Intervals
from toolkit.training.loss_guard import Spike
from toolkit.training.pace import Pace, grace_seconds

if TYPE_CHECKING:
    from toolkit.training.trainer import RecipeTrainer

SAVE_RETRY_MINUTES = 1.0
"""Delay before the next save, after one that failed."""
DOCKER_GRACE_SECONDS = 10
"""Default grace period of `docker stop`."""


class RunCallback(DefaultFlowCallback):
    """Decides at the end of each step what is due, writes metrics.jsonl, and notifies the listener.

    It replaces the Trainer's own flow callback, whose cadence is that of the checkpoint it resumes from; here the
    recipe's applies, and saves may also be due by the clock.
    """

    def __init__(
        self, cadence: Intervals, run: RunDirectory, listener: Listener, stop: StopRequest, *, save_seconds: float
    ) -> None:
        self.cadence = cadence
        self.run = run
        self.metrics = MetricsLog(run, listener)
        self.listener = listener
        self.stop = stop
        self.trainer: RecipeTrainer | None = None
        self.resumed_from: Path | None = None
        self.evaluation_left_out = False
        """Whether the evaluation of the step to resume from is missing, as when a signal left no time for it."""
        self.stop_after: int | None = None
        """End this attempt after this step of the run, as a signal would."""
        self.last_save_step: int | None = None
        self._next_save = math.inf
        self._pace = Pace(save_seconds=save_seconds)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the running sums, which the Trainer has just reset, and make up a missing evaluation."""
        assert self.trainer is not None
        self._pace.seen(int(state.num_input_tokens_seen))
        self._pace.evaluation_tokens = self.trainer.evaluation_tokens
        if not self.trainer.saver.in_background:
            self._pace.stall_seconds = self._pace.save_seconds
        if self.resumed_from:
            self.trainer.restore_sums(self.resumed_from)
            self.last_save_step = state.global_step
            self.make_up_evaluation(state.global_step)
            if self.trainer.ended:
                raise EndedByEvaluation
        self.trainer.survive_in_the_optimizer()
        self._save_in(self.cadence.save_minutes)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start timing the step."""
        self._pace.step_begins()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Decide what is due."""
        assert self.trainer is not None
        self.trainer.saver.take_result_if_done()
        cadence, step = self.cadence, state.global_step
        self._pace.step_ends()
        self._tell_grace()
        if self.stop_after is not None and step >= self.stop_after:
            self.stop.signal_number = self.stop.signal_number or signal.SIGTERM
        save_due = time.monotonic() >= self._next_save or self.stop.save_requested
        stop, save_due = distributed.any_process(self.stop.signal_number is not None, save_due)
        save_due |= any(every is not None and step % every == 0 for every in (cadence.save_steps, cadence.keep_every))
        if stop and self.stop.signal_number is None:  # another process has received it
            self.stop.signal_number = signal.SIGTERM
        if save_due:
            self.stop.save_requested = False
            self._save_in(cadence.save_minutes)
        if control.should_training_stop:  # a callback's decision
            self.trainer.ended = True
        last = step >= cadence.total_steps or stop or self.trainer.ended
        self._pace.seen(int(state.num_input_tokens_seen))
        control.should_log |= step == 1 or step % cadence.logging_steps == 0 or step >= cadence.total_steps
        every = cadence.eval_steps
        evaluation_due = every is not None and (step >= cadence.total_steps or step % every == 0)
        if evaluation_due and stop and step < cadence.total_steps:
            self.trainer.evaluation_left_out = True
        else:
            control.should_evaluate |= evaluation_due
        control.should_save |= last or save_due
        control.should_training_stop |= last
        if not control.should_log:
            self._tell(state)
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Do nothing: no action is due at the end of an epoch."""
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
        self.metrics.write(
            {
                "step": state.global_step,
                "kind": "train",
                "loss": logs["loss"],
                "grad_norm": logs.get("grad_norm"),
                "learning_rate": logs["learning_rate"],
                "epoch": state.epoch,
                "tokens_seen": int(state.num_input_tokens_seen),
                "tokens_per_second": self._pace.tokens_per_second,
                "memory_bytes": resident_bytes(),
                "peak_memory_bytes": peak_bytes(args.device.type),
                **_device_memory(args.device),
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
        if self.evaluation_left_out and any(
            (line["kind"], line["step"]) == ("eval", state.global_step) for line in self.run.metrics()
        ):
            return  # recorded before; made up again only for the callbacks
        loss = metrics["eval_loss"]
        perplexity = math.exp(loss) if loss < 700 else math.inf
        self.metrics.write(
            {
                "step": state.global_step,
                "kind": "eval",
                "eval_loss": loss,
                "perplexity": perplexity,
                "seconds": self.trainer.seconds_trained,
            }
        )
        self.listener(Evaluated(state.global_step, loss, perplexity))
        self._pace.evaluation_seconds = metrics["eval_runtime"]
        self._pace.restart(int(state.num_input_tokens_seen))

    def make_up_evaluation(self, step: int) -> None:
        """Evaluate the step to resume from, if that evaluation is missing.

        Also if an earlier attempt made it up, but saved nothing after it: callbacks have to see it again.

        Raises:
            InterruptedRun: another signal came; after one more step the evaluation could never be made up.
        """
        assert self.trainer is not None
        if not self.evaluation_left_out:
            return
        self.trainer.evaluate()
        if self.trainer.evaluation_left_out:
            raise self.stop.error(f"step {step} is saved; the same command goes on from there")
        self.evaluation_left_out = False

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the evaluation to the next attempt if the run is to stop: it could outlast the grace period."""
        alone = distributed.world_size() == 1  # other processes would wait for this one forever
        if alone and self.stop.signal_number is not None:
            raise EvaluationLeftOut

    def saved(self, saved: Saved) -> None:
        """Record a save whose checkpoint is safe on disk."""
        self.last_save_step = saved.step
        self._pace.save_seconds, self._pace.stall_seconds = saved.seconds, saved.stall_seconds
        line = {"step": saved.step, "kind": "save", "seconds": saved.seconds}
        self.metrics.write(line | {"stall_seconds": saved.stall_seconds, "bytes": saved.bytes})
        self.listener(CheckpointSaved(saved.step, saved.folder, saved.seconds, saved.stall_seconds))

    def save_failed(self, step: int, error: UnavailableError) -> None:
        """Report the failure, go on training, and retry in a minute."""
        stands = f"step {self.last_save_step} is saved" if self.last_save_step is not None else "nothing is saved yet"
        self.listener(Message(f"{error}\ntraining goes on ({stands}); the next save is tried in a minute"))
        self._save_in(SAVE_RETRY_MINUTES)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the save out of the displayed speed."""
        self._pace.restart(int(state.num_input_tokens_seen))

    def spiked(self, spike: Spike) -> None:
        """Record a loss spike."""
        self.metrics.write({"step": spike.step, "kind": "spike", **asdict(spike)})
        outcomes = {"stop": "the run stops", "skip-batch": "its batch is left out", "warn": "training goes on"}
        self.listener(
            Message(
                f"step {spike.step:,}: the loss is {spike.loss:.4f} after {spike.mean:.4f} (+- {spike.deviation:.2g}) "
                f"in the steps before; {outcomes[spike.action]}; {spike.batch}"
            )
        )

    def smaller(self, smaller: SmallerBatch) -> None:
        """Record an out-of-memory error, and the smaller pieces that training goes on with."""
        self.metrics.write({"step": smaller.step, "kind": "memory", **asdict(smaller)})
        self.listener(
            Message(
                f"memory ran out in {smaller.during} of step {smaller.step:,}: the step is done again, and training "
                f"goes on, with {counted(smaller.sequences, 'sequence')} at a time; a step still has as many as before"
            )
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Flush the pending metrics; a disk that still refuses them ends the run with its error."""
        self.metrics.flush()

    def _save_in(self, minutes: float | None) -> None:
        self._next_save = time.monotonic() + 60 * (math.inf if minutes is None else minutes)

    def _tell_grace(self) -> None:
        """After a few steps, report the grace period that the run needs after SIGTERM."""
        step = self._pace.measured_step_seconds()
        if step is None or not distributed.is_main_process():
            return
        grace = grace_seconds(step=step, save=self._pace.save_seconds)
        with contextlib.suppress(OSError):  # a full disk is reported by the saves
            self.run.update(grace_seconds=grace)
        words = f"to stop without loss this run needs {grace} s after SIGTERM: a step takes {duration(step)}, "
        words += f"a save about {duration(self._pace.save_seconds)}"
        self.listener(Message(words + (f"; docker stop --time {grace}" if grace > DOCKER_GRACE_SECONDS else "")))

    def _tell(self, state: TrainerState, *, loss: float | None = None, learning_rate: float | None = None) -> None:
        speed, seen, step = self._pace.tokens_per_second, int(state.num_input_tokens_seen), state.global_step
        self.listener(
            StepDone(
                step=step,
                total_steps=self.cadence.total_steps,
                tokens_seen=seen,
                tokens_per_second=speed,
                remaining_seconds=self._pace.remaining_seconds(self.cadence, step=step, tokens_per_step=seen / step),
                loss=loss,
                learning_rate=learning_rate,
                last_save_step=self.last_save_step,
            )
        )


def _device_memory(device: torch.device) -> dict[str, int]:
    """Peak memory of this process's tensors on a GPU."""
    return {"device_memory_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
