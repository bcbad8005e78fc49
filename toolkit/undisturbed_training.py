"""A Trainer whose training does not notice evaluations and callbacks, and whose held-out loss is one of tokens."""

from __future__ import annotations

import logging
import math
from typing import Any, cast

import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import EvalLoopOutput

from toolkit.api import Progress, Task
from toolkit.errors import OutOfMemoryError, TrainingError
from toolkit.formatting import counted
from toolkit.loss import predicted_tokens
from toolkit.random_state import random_state_preserved
from toolkit.signals import EvaluationLeftOut
from toolkit.smaller_steps import OutOfMemoryCaught, SmallerSteps, free_memory
from toolkit.tracker_failures import tolerant
from toolkit.without_effect import check_loss_function, loss_function_of


class UndisturbedTrainer(Trainer):
    """A Trainer with which the same run without evaluations and callbacks ends with the same weights."""

    def __init__(self, *, task: Task, steps: SmallerSteps, progress: Progress, **of_the_trainer: Any) -> None:
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
        """Whether a callback has ended the training before its last step."""
        self.evaluation_left_out = False
        """Whether a signal came in an evaluation, which the next attempt has to make up for."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without a trace, and hear whether a callback ends the training for what it sees."""
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
        """The mean loss of a predicted token; the Trainer's is one of batches, which changes with their size.

        Where memory runs out, it begins again with a smaller batch; callbacks hear of the evaluation once.
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
        """The loss; and for each sequence, in the place of logits, its share of the batch's loss and tokens, (n, 2)."""
        size = len(inputs["labels"])
        # The last batch is filled up for all processes, and what fills it is cut off again: sequence by sequence then.
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
        """Memory ran out in an evaluation: halve its batch, and leave training's alone."""
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
    """Callbacks may draw random numbers, to sample a text, say; training does not notice. They leave the loss alone."""

    def call_event(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        loss_function = loss_function_of(self.model)
        with random_state_preserved():
            control = cast(TrainerControl, super().call_event(event, args, state, control, **kwargs))
        check_loss_function(loss_function, self.model, "a callback")
        return control
