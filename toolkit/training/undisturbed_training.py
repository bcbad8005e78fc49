"""A Trainer whose evaluations and callbacks do not affect training, and whose held-out loss is a mean over tokens."""

from __future__ import annotations

import logging
import math
import time
from itertools import groupby
from typing import Any, cast

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import speed_metrics

from toolkit.api import Progress, Task
from toolkit.data.mixture import HeldOutBlocks
from toolkit.data.packed_dataset import BLOCK_NUMBERS
from toolkit.errors import OutOfMemoryError, TrainingError
from toolkit.formatting import counted
from toolkit.memory.oom_retry import OOMRetry, OutOfMemoryCaught, free_memory
from toolkit.system import distributed
from toolkit.system.rng_state import random_state_preserved
from toolkit.system.signals import StopRequest
from toolkit.training.loss import predicted_tokens
from toolkit.training.run_callback import BY_SOURCE, RunCallback
from toolkit.training.sharded_trainer import ShardingTrainer
from toolkit.training.status import TrainingStatus
from toolkit.training.tracker_failures import tolerant
from toolkit.training.without_effect import check_loss_function, loss_function_of


class UndisturbedTrainer(ShardingTrainer):
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
        """Compute the mean loss per predicted token, in all and of each source of a mixture.

        The Trainer's own is a mean over batches, and depends on their size.

        The RNG state is preserved. If a signal to stop cuts the evaluation short, the loss is NaN, no callback hears
        of it, and training ends with a save.
        """
        begun, stopping = time.time(), self.control.should_training_stop
        data: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        with random_state_preserved():
            losses = self._mean_losses(self.get_eval_dataloader(eval_dataset))
            self.status.evaluation_left_out = losses is None
            if losses is None:
                self.control.should_evaluate = False
                self.control.should_save = self.control.should_training_stop = True
                return {f"{metric_key_prefix}_loss": math.nan}
            batches = math.ceil(len(data) / (self.args.eval_batch_size * self.args.world_size))
            speed = speed_metrics(metric_key_prefix, begun, num_samples=len(data), num_steps=batches)
            metrics: dict[str, float] = {f"{metric_key_prefix}_loss": losses.pop(""), **speed}
            metrics |= {f"{metric_key_prefix}_{name}_loss": loss for name, loss in losses.items()}
            self.log(metrics)
            told: dict[str, Any] = {**metrics, BY_SOURCE: losses} if losses else metrics
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, told)
        self.reshard()
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

    def _mean_losses(self, dataloader: Any) -> dict[str, float] | None:
        """The loss in all, under '', and of each source; None if a signal cut it short.

        If memory runs out, it starts over with a smaller batch.
        """
        while True:
            with OutOfMemoryCaught():
                return self._mean_losses_over(dataloader)
            self._evaluate_smaller()
            dataloader = self.get_eval_dataloader(dataloader.dataset)

    def _mean_losses_over(self, dataloader: Any) -> dict[str, float] | None:
        model, sums = self._model_to_evaluate(), []
        held_out = dataloader.dataset if isinstance(dataloader.dataset, HeldOutBlocks) else None
        self.callback_handler.eval_dataloader = dataloader
        self.progress("evaluating", 0, len(dataloader), unit="batches")
        for number, inputs in enumerate(dataloader, start=1):
            sums.append(self.accelerator.gather_for_metrics(self._loss_sums(model, inputs, held_out)))
            self.progress("evaluating", number, len(dataloader), unit="batches")
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            # Several processes would wait for one that leaves.
            if self.stop.signal_number is not None and self.args.world_size == 1:
                return None
        rows = torch.cat(sums).cpu().numpy()
        parts = {"": rows} | {
            name: rows[rows[:, 2] == number] for number, name in enumerate(held_out.names if held_out else ())
        }
        totals = {name: part.sum(axis=0, dtype="float64") for name, part in parts.items()}
        return {name: float(loss / max(tokens, 1)) for name, (loss, tokens, _) in totals.items()}

    def _loss_sums(self, model: torch.nn.Module, inputs: Any, held_out: HeldOutBlocks | None) -> torch.Tensor:
        """Each sequence's share of its batch's loss sum and of its predicted tokens, and its source's number, (n, 3).

        Sequences of several sources are not computed together.
        """
        numbers = inputs[BLOCK_NUMBERS].tolist() if held_out else []
        sources = [held_out.number_of(number) for number in numbers] if held_out else [0] * len(inputs["labels"])
        # The last batch is padded with sequences for all processes, which are cut off again: so one at a time then. And
        # in all of them where one has several sources, because DDP's processes have to call the model equally often.
        (several,) = distributed.any_process(len(set(sources)) > 1) if held_out else (False,)
        singly = self.args.world_size > 1 and (self.accelerator.gradient_state.end_of_dataloader or several)
        shares, first = [], 0
        for source, group in groupby(enumerate(sources), key=lambda pair: (pair[1], pair[0] * singly)):
            size = len(list(group))
            part = {name: value[first : first + size] for name, value in inputs.items()}
            loss: Any = self.prediction_step(model, part, prediction_loss_only=True)[0]
            tokens = predicted_tokens(part["labels"], self.task).to(loss)
            share = torch.stack([loss * tokens / size, tokens / size, torch.full_like(tokens, source[0])])
            shares.append(share.repeat(size, 1))
            first += size
        return torch.cat(shares)

    def _model_to_evaluate(self) -> torch.nn.Module:
        self.reshard()
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
