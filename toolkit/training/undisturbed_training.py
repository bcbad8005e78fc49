"""A Trainer whose evaluations and callbacks do not affect training, and whose held-out loss is a mean over tokens."""

from __future__ import annotations

import logging
import math
from typing import Any, cast

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import EvalLoopOutput

from toolkit.api import Progress, Task
from toolkit.errors import OutOfMemoryError, TrainingError
from toolkit.formatting import counted
from toolkit.memory.oom_retry import OOMRetry, OutOfMemoryCaught, free_memory
from toolkit.system.rng_state import random_state_preserved
from toolkit.system.signals import EvaluationLeftOut
from toolkit.training.checkpoint_weights import CompleteTrainer
from toolkit.training.loss import predicted_tokens
from toolkit.training.tracker_failures import tolerant
from toolkit.training.without_effect import check_loss_function, loss_function_of


class UndisturbedTrainer(CompleteTrainer):
    """A Trainer that ends with the same weights as it would without evaluations and callbacks."""

    def __init__(self, *, task: Task, steps: OOMRetry, progress: Progress, **of_the_trainer: Any) -> None:
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
        self.steps = steps
        self.progress = progress
        self._batches_evaluated = self._batches_to_evaluate = 0
        self.ended = False
        """Whether a callback ended training before its last step."""
        self.evaluation_left_out = False
        """Whether a signal left no time for an evaluation, which the next attempt has to make up."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate with the RNG state preserved, and note if a callback ends training because of the result."""
        stopping = self.control.should_training_stop
        try:
            with random_state_preserved():
                metrics = super().evaluate(*args, **kwargs)
        except EvaluationLeftOut:
            self.evaluation_left_out = True
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True
            return {"eval_loss": math.nan}
        if self.control.should_training_stop and not stopping:  # early-stopping, say
            self.ended = self.control.should_save = True
        return metrics

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compute the mean loss per predicted token; the Trainer's is a mean over batches, and depends on their size.

        If memory runs out, it starts over with a smaller batch; `on_evaluate` is called once.
        """
        while True:
            self._batches_evaluated, self._batches_to_evaluate = 0, len(dataloader)
            self._tell_evaluated()
            with OutOfMemoryCaught():
                output = super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
                loss, tokens = cast(Any, output.predictions).sum(axis=0, dtype="float64")
                cast(Any, output.metrics)[f"{metric_key_prefix}_loss"] = float(loss / max(tokens, 1))
                return output
            self._evaluate_smaller()
            dataloader = self.get_eval_dataloader(dataloader.dataset)

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Return the loss and, in place of logits, each sequence's share of the batch's loss sum and tokens, (n, 2)."""
        size = len(inputs["labels"])
        # The last batch is padded with sequences for all processes, which are cut off again: so one at a time then.
        at_once = 1 if self.args.world_size > 1 and self.accelerator.gradient_state.end_of_dataloader else size
        losses, shares = [], []
        for first in range(0, size, at_once):
            part = {name: value[first : first + at_once] for name, value in inputs.items()}
            loss, _, _ = super().prediction_step(model, part, prediction_loss_only=True, ignore_keys=ignore_keys)
            assert loss is not None
            tokens = predicted_tokens(part["labels"], self.task).to(loss)
            losses.append(loss)
            shares.append((torch.stack([loss * tokens, tokens]) / at_once).repeat(at_once, 1))
        self._batches_evaluated += 1
        self._tell_evaluated()
        return torch.stack(losses).mean(), torch.cat(shares), None

    def _tell_evaluated(self) -> None:
        self.progress("evaluating", self._batches_evaluated, self._batches_to_evaluate, unit="batches")

    def _evaluate_smaller(self) -> None:
        """Halve the evaluation batch size after running out of memory, and leave that of training alone."""
        size, step = self.args.per_device_eval_batch_size, self.state.global_step
        if size == 1:
            raise TrainingError(f"memory ran out in the evaluation after step {step}, at batch 1")
        if why := self.steps.unrepeatable:
            raise OutOfMemoryError(
                f"memory ran out in the evaluation after step {step}, and this attempt cannot do it again: {why}; the "
                f"same command goes on from the last checkpoint, and evaluates {counted(size // 2, 'sequence')} at "
                f"a time",
                evaluation_sequences=size // 2,
            )
        self.args.per_device_eval_batch_size = size // 2
        logging.getLogger("toolkit").info("memory ran out in an evaluation: it goes on with batches of %s", size // 2)
        free_memory()


class _UndisturbingHandler(CallbackHandler):
    """Lets callbacks draw random numbers, to sample a text, say, without effect on training; refuses changed losses."""

    def call_event(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        loss_function = loss_function_of(self.model)
        with random_state_preserved():
            control = cast(TrainerControl, super().call_event(event, args, state, control, **kwargs))
        check_loss_function(loss_function, self.model, "a callback")
        return control
