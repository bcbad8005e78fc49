"""A Trainer whose evaluations and callbacks do not affect training, and whose held-out loss is a mean over tokens."""

from __future__ import annotations

import logging
import math
import time
from typing import Any, cast

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import speed_metrics

from toolkit.api import Progress, Task
from toolkit.errors import OutOfMemoryError, TrainingError
from toolkit.formatting import counted
from toolkit.memory.oom_retry import OOMRetry, OutOfMemoryCaught, free_memory
from toolkit.system.rng_state import random_state_preserved
from toolkit.system.signals import StopRequest
from toolkit.training.checkpoint_weights import CompleteTrainer
from toolkit.training.loss import predicted_tokens
from toolkit.training.run_callback import RunCallback
from toolkit.training.status import TrainingStatus
from toolkit.training.tracker_failures import tolerant
from toolkit.training.without_effect import check_loss_function, loss_function_of


class UndisturbedTrainer(CompleteTrainer):
    """A Trainer that ends with the same weights as it would without evaluations and callbacks."""

    def __init__(
        self,
        *,
        task: Task,
        retry: OOMRetry,
        progress: Progress,
        status: TrainingStatus,
        stop: StopRequest,
        **of_the_trainer: Any,
    ) -> None:
        super().__init__(**of_the_trainer)
        handler = self.callback_handler
        self.callback_handler = _UndisturbingHandler(
            tolerant(handler.callbacks),
            handler.model,
            handler.processing_class,
            handler.optimizer,
            handler.lr_scheduler,
        )
        self.task: Task = task
        self.retry = retry
        self.progress = progress
        self.status = status
        self.stop = stop

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Compute the mean loss per predicted token; the Trainer's is a mean over batches, and depends on their size.

        The RNG state is preserved. If a signal to stop cuts the evaluation short, the loss is NaN, no callback hears
        of it, and training ends with a save.
        """
        begun, stopping = time.time(), self.control.should_training_stop
        data: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        with random_state_preserved():
            loss = self._mean_loss(self.get_eval_dataloader(eval_dataset))
            self.status.evaluation_left_out = loss is None
            if loss is None:
                self.control.should_evaluate = False
                self.control.should_save = self.control.should_training_stop = True
                return {f"{metric_key_prefix}_loss": math.nan}
            batches = math.ceil(len(data) / (self.args.eval_batch_size * self.args.world_size))
            speed = speed_metrics(metric_key_prefix, begun, num_samples=len(data), num_steps=batches)
            metrics: dict[str, float] = {f"{metric_key_prefix}_loss": loss, **speed}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.control.should_training_stop and not stopping:  # early-stopping, say
            self.status.ended = self.control.should_save = True
        return metrics

    def make_up_evaluation(self) -> None:
        """Evaluate the step to resume from, if that evaluation is missing.

        Also if an earlier attempt made it up, but saved nothing after it: callbacks have to see it again.

        Raises:
            InterruptedRun: another signal came; after one more step the evaluation could never be made up.
        """
        if self.status.evaluation_left_out:
            self.evaluate()
        if self.status.evaluation_left_out:
            raise self.stop.error(f"step {self.state.global_step} is saved; the same command resumes from there")

    def _mean_loss(self, dataloader: Any) -> float | None:
        """The loss; None if a signal cut it short. If memory runs out, it starts over with a smaller batch."""
        while True:
            with OutOfMemoryCaught():
                return self._mean_loss_over(dataloader)
            self._evaluate_smaller()
            dataloader = self.get_eval_dataloader(dataloader.dataset)

    def _mean_loss_over(self, dataloader: Any) -> float | None:
        model, sums = self._model_to_evaluate(), []
        self.callback_handler.eval_dataloader = dataloader
        self.progress("evaluating", 0, len(dataloader), unit="batches")
        for number, inputs in enumerate(dataloader, start=1):
            sums.append(self.accelerator.gather_for_metrics(self._loss_sums(model, inputs)))
            self.progress("evaluating", number, len(dataloader), unit="batches")
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            # Several processes would wait for one that leaves.
            if self.stop.signal_number is not None and self.args.world_size == 1:
                return None
        loss, tokens = torch.cat(sums).cpu().numpy().sum(axis=0, dtype="float64")
        return float(loss / max(tokens, 1))

    def _loss_sums(self, model: torch.nn.Module, inputs: Any) -> torch.Tensor:
        """Each sequence's share of the batch's loss sum and of its predicted tokens, (n, 2)."""
        size = len(inputs["labels"])
        # The last batch is padded with sequences for all processes, which are cut off again: so one at a time then.
        at_once = 1 if self.args.world_size > 1 and self.accelerator.gradient_state.end_of_dataloader else size
        shares = []
        for first in range(0, size, at_once):
            part = {name: value[first : first + at_once] for name, value in inputs.items()}
            loss: Any = self.prediction_step(model, part, prediction_loss_only=True)[0]
            tokens = predicted_tokens(part["labels"], self.task).to(loss)
            shares.append((torch.stack([loss * tokens, tokens]) / at_once).repeat(at_once, 1))
        return torch.cat(shares)

    def _model_to_evaluate(self) -> torch.nn.Module:
        model = self._wrap_model(cast(Any, self.model), training=False)
        if not self.accelerator._models and model is self.model:  # nothing was trained in this process
            self.model_wrapped = model = self.accelerator.prepare_model(model, evaluation_mode=True)
        optimizer: Any = self.optimizer
        for part in (model, optimizer):  # a schedule-free optimizer evaluates other weights than it trains
            if hasattr(part, "eval"):
                part.eval()
        return model

    def _evaluate_smaller(self) -> None:
        """Halve the evaluation batch size after running out of memory, and leave that of training alone."""
        size, step = self.args.per_device_eval_batch_size, self.state.global_step
        if size == 1:
            raise TrainingError(f"out of memory in the evaluation after step {step}, at batch 1")
        if why := self.retry.unrepeatable:
            raise OutOfMemoryError(
                f"out of memory in the evaluation after step {step}, and this attempt cannot repeat it: {why}; the "
                f"same command resumes from the last checkpoint, and evaluates {counted(size // 2, 'sequence')} at "
                f"a time",
                evaluation_sequences=size // 2,
            )
        self.args.per_device_eval_batch_size = size // 2
        logging.getLogger("toolkit").info("out of memory in an evaluation: it continues with batches of %s", size // 2)
        free_memory()


class _UndisturbingHandler(CallbackHandler):
    """Lets callbacks draw random numbers, to sample a text, say, without effect on training; refuses changed losses."""

    def call_event(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if not any(_may_disturb(callback, event) for callback in self.callbacks):
            return cast(TrainerControl, super().call_event(event, args, state, control, **kwargs))
        loss_function = loss_function_of(self.model)
        with random_state_preserved():
            control = cast(TrainerControl, super().call_event(event, args, state, control, **kwargs))
        check_loss_function(loss_function, self.model, "a callback")
        return control


def _may_disturb(callback: TrainerCallback, event: str) -> bool:
    """Whether it is somebody else's and does anything at this event: to preserve the RNG states takes 0.1 ms."""
    overrides = event in vars(callback) or getattr(type(callback), event) is not getattr(TrainerCallback, event)
    return overrides and not isinstance(callback, RunCallback)
