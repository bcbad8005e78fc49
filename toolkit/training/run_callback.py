"""Flow control of the Trainer: what is due at the end of a step (log, evaluation, save, stop), and its reporting."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from typing import Any

import torch
from transformers import DefaultFlowCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.events import Evaluated, Message, StepDone
from toolkit.formatting import duration
from toolkit.storage.async_saver import AsyncSaver
from toolkit.storage.metrics_log import MetricsLog
from toolkit.system import distributed
from toolkit.system.host_memory import peak_bytes, resident_bytes
from toolkit.system.signals import StopRequest
from toolkit.training.due import what_is_due
from toolkit.training.intervals import Intervals
from toolkit.training.pace import Pace, grace_seconds
from toolkit.training.status import TrainingStatus

BY_SOURCE = "eval_loss_by_source"
"""Among the metrics of an evaluation: the loss on each source of a mixture."""
DOCKER_GRACE_SECONDS = 10
"""Default grace period of `docker stop`."""


class RunCallback(DefaultFlowCallback):
    """Decides at the end of each step what is due, writes metrics.jsonl, and notifies the listener.

    It replaces the Trainer's own flow callback, whose cadence is that of the checkpoint it resumes from; here the
    recipe's applies, and saves may also be due by the clock.
    """

    def __init__(
        self,
        intervals: Intervals,
        pace: Pace,
        *,
        log: MetricsLog,
        saver: AsyncSaver,
        status: TrainingStatus,
        stop: StopRequest,
        stop_after: int | None = None,
        epochs: float = 1.0,
    ) -> None:
        """With `stop_after`, this attempt ends after that step of the run, as by a signal.

        `epochs` are those in what the Trainer takes for one: it sees a mixture as a single long epoch.
        """
        self.intervals = intervals
        self.pace = pace
        self.log = log
        self.saver = saver
        self.status = status
        self.stop = stop
        self.stop_after = stop_after
        self.epochs = epochs
        self._next_save = math.inf
        self._evaluated_before = {line["step"] for line in log.run.metrics() if line["kind"] == "eval"}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clocks."""
        self.pace.seen(int(state.num_input_tokens_seen))
        self._restart_save_clock()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start timing the step."""
        self.pace.step_begins(state.global_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Decide what is due."""
        step = state.global_step
        self.saver.take_result_if_done()
        if saved := self.saver.last_saved:
            self.pace.save_seconds, self.pace.stall_seconds = saved.seconds, saved.stall_seconds
        self.pace.step_ends()
        self._tell_grace()
        signaled, save_requested = self._requests(step)
        self.status.ended |= control.should_training_stop  # a callback's decision
        due = what_is_due(
            self.intervals, step, signaled=signaled, save_requested=save_requested, ended=self.status.ended
        )
        if due.save:
            self.stop.save_requested = False
            self._restart_save_clock()
        self.pace.seen(int(state.num_input_tokens_seen))
        self.status.evaluation_left_out |= due.skip_evaluation
        control.should_log |= due.log
        control.should_evaluate |= due.evaluate
        control.should_save |= due.save
        control.should_training_stop |= due.stop
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
        if logs is None or "loss" not in logs:
            return
        self.log.write(
            {
                "step": state.global_step,
                "kind": "train",
                "loss": logs["loss"],
                "grad_norm": logs.get("grad_norm"),
                "learning_rate": logs["learning_rate"],
                "epoch": None if state.epoch is None else state.epoch * self.epochs,
                "tokens_seen": int(state.num_input_tokens_seen),
                "tokens_per_second": self.pace.tokens_per_second,
                "mfu": self.pace.mfu,
                "memory_bytes": resident_bytes(),
                "peak_memory_bytes": peak_bytes(args.device.type),
                **_device_memory(args.device),
                "seconds": self.status.seconds_trained,
            }
        )
        self._tell(state, loss=logs["loss"], learning_rate=logs["learning_rate"])

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record an evaluation, unless an earlier attempt has, and this one repeats it for the callbacks."""
        if state.global_step in self._evaluated_before:
            return
        loss, by_source = kwargs["metrics"]["eval_loss"], kwargs["metrics"].get(BY_SOURCE, {})
        perplexity = math.exp(loss) if loss < 700 else math.inf
        line: dict[str, Any] = {"step": state.global_step, "kind": "eval", "eval_loss": loss, "perplexity": perplexity}
        line |= {"by_source": by_source} if by_source else {}
        told = Evaluated(state.global_step, loss, perplexity, by_source)
        self.log.write(line | {"seconds": self.status.seconds_trained}, told)
        self.pace.evaluation_seconds = kwargs["metrics"]["eval_runtime"]
        self.pace.restart(int(state.num_input_tokens_seen))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the save out of the displayed speed."""
        self.pace.restart(int(state.num_input_tokens_seen))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Flush the pending metrics; a disk that still refuses them ends the run with its error."""
        self.log.flush()

    def _requests(self, step: int) -> tuple[bool, bool]:
        """Whether any process has a signal to stop, and whether any has a save that is due by the clock or a signal."""
        if self.stop_after is not None and step >= self.stop_after:
            self.stop.signal_number = self.stop.signal_number or signal.SIGTERM
        by_clock = time.monotonic() >= min(self._next_save, self.saver.retry_at)
        signaled, save_requested = distributed.any_process(
            self.stop.signal_number is not None, by_clock or self.stop.save_requested
        )
        if signaled and self.stop.signal_number is None:  # another process has received it
            self.stop.signal_number = signal.SIGTERM
        return signaled, save_requested

    def _restart_save_clock(self) -> None:
        minutes = self.intervals.save_minutes
        self._next_save = time.monotonic() + 60 * (math.inf if minutes is None else minutes)

    def _tell_grace(self) -> None:
        """After a few steps, report the grace period that the run needs after SIGTERM."""
        step = self.pace.measured_step_seconds()
        if step is None or not distributed.is_main_process():
            return
        grace = grace_seconds(step=step, save=self.pace.save_seconds)
        with contextlib.suppress(OSError):  # a full disk is reported by the saves
            self.log.run.update(grace_seconds=grace)
        words = f"to stop without loss this run needs {grace} s after SIGTERM: a step takes {duration(step)}, "
        words += f"a save about {duration(self.pace.save_seconds)}"
        self.log.listener(Message(words + (f"; docker stop --time {grace}" if grace > DOCKER_GRACE_SECONDS else "")))

    def _tell(self, state: TrainerState, *, loss: float | None = None, learning_rate: float | None = None) -> None:
        speed, seen, step = self.pace.tokens_per_second, int(state.num_input_tokens_seen), state.global_step
        self.log.listener(
            StepDone(
                step=step,
                total_steps=self.intervals.total_steps,
                tokens_seen=seen,
                tokens_per_second=speed,
                mfu=self.pace.mfu,
                remaining_seconds=self.pace.remaining_seconds(self.intervals, step=step, tokens_per_step=seen / step),
                loss=loss,
                learning_rate=learning_rate,
                last_save_step=self.saver.last_step,
            )
        )


def _device_memory(device: torch.device) -> dict[str, int]:
    """Peak memory of this process's tensors on a GPU."""
    return {"device_memory_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
