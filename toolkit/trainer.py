"""The Hugging Face Trainer, taught what this toolkit promises: whole checkpoints, exact resume, true sums.

The Trainer computes every number and writes every byte of state. What is overridden here is where a save goes,
how the loss is normalized, and what may disturb the random numbers. The private methods this leans on
(`_save_checkpoint`, `_get_output_dir`, `_get_grad_norm`, `_maybe_log_save_evaluate`) are held by the version range
in pyproject and by tests/unit/test_trainer.py.
"""

from __future__ import annotations

import contextlib
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    DefaultFlowCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import CallbackHandler

from toolkit import checkpoint
from toolkit.api import Optimizer, RunContext, Task
from toolkit.errors import TrainingError, UnavailableError
from toolkit.host import disk_faults_named
from toolkit.run_directory import RunDirectory, read_json, write_json

if TYPE_CHECKING:
    from toolkit.assemble import Components
    from toolkit.recipe.training import Training

STATE_FILE = "toolkit_state.json"
"""In a checkpoint: the running sums that the Trainer keeps in memory alone, and the time trained."""


class RecipeTrainer(Trainer):
    """A Trainer whose checkpoints are committed whole and whose evaluation cannot change training."""

    def __init__(
        self,
        *,
        components: Components,
        arguments: TrainingArguments,
        optimizer: Optimizer,
        run: RunDirectory,
        context: RunContext,
        callbacks: list[TrainerCallback],
        on_saved: Callable[[int, Path, float], None],
    ) -> None:
        super().__init__(
            model=components.model,
            args=arguments,
            train_dataset=components.data.train,
            eval_dataset=components.data.validation,
            processing_class=components.tokenizer,
            data_collator=components.objective.collator(components.tokenizer),
            compute_loss_func=token_mean_loss(context.task),
            callbacks=callbacks,
        )
        self.remove_callback(DefaultFlowCallback)  # the first of its class: the Trainer's own, not our Schedule
        self.remove_callback(PrinterCallback)  # the listener shows
        handler = self.callback_handler
        self.callback_handler = _UndisturbingHandler(
            handler.callbacks, handler.model, handler.processing_class, handler.optimizer, handler.lr_scheduler
        )
        self.run = run
        self.context = context
        self.optimizer_plugin = optimizer
        self.on_saved = on_saved
        self.keep = 2
        self.seconds_before = 0.0
        """Time trained in earlier attempts."""
        self.started = time.monotonic()
        self._staging: Path | None = None

    @property
    def seconds_trained(self) -> float:
        """Time trained, over all attempts."""
        return self.seconds_before + time.monotonic() - self.started

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The recipe's optimizer."""
        if self.optimizer is None:
            self.optimizer = self.optimizer_plugin.build(
                cast(torch.nn.Module, self.model if model is None else model),
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                run=self.context,
            )
        return self.optimizer

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without a trace: the same run without evaluations ends with the same weights."""
        with random_state_preserved():
            return super().evaluate(*args, **kwargs)

    def restore_sums(self, folder: Path) -> None:
        """Put back what the Trainer does not save; called once it has begun, for it starts from zero."""
        state = read_json(folder / STATE_FILE)
        self._tr_loss = torch.tensor(float.fromhex(state["loss_sum"]), device=self.args.device)
        self._total_loss_scalar = float.fromhex(state["total_loss"])
        self._globalstep_last_logged = state["last_logged_step"]
        self.seconds_before = state["seconds_trained"]
        self.started = time.monotonic()

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Let the Trainer write into a staging folder, then commit it."""
        begun = time.monotonic()
        name = f"checkpoint-{self.state.global_step}"
        final = self.run.checkpoints / name
        self._staging = self.run.checkpoints / checkpoint.STAGING
        try:
            if self.args.should_save:
                self._check_free_space()
                self._staging.mkdir(exist_ok=True)
            self.accelerator.wait_for_everyone()
            with disk_faults_named(self.run.checkpoints, f"the checkpoint of step {self.state.global_step}"):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    self._commit(self._staging / name, final)
            self.accelerator.wait_for_everyone()
        finally:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        if self.args.should_save:
            self.on_saved(self.state.global_step, final, time.monotonic() - begun)

    def _commit(self, staged: Path, final: Path) -> None:
        sums = {
            # Hexadecimal, so that no digit is lost: the logged loss after a resume is the one without it.
            "loss_sum": float(self._tr_loss.item()).hex(),
            "total_loss": float(self._total_loss_scalar).hex(),
            "last_logged_step": self._globalstep_last_logged,
            "seconds_trained": self.seconds_trained,
        }
        write_json(staged / STATE_FILE, sums)
        checkpoint.commit(staged, final, run_id=self.run.record["id"], step=self.state.global_step)
        checkpoint.prune(self.run.checkpoints, keep=self.keep)

    def _check_free_space(self) -> None:
        needed, free = (
            checkpoint.expected_bytes(cast(torch.nn.Module, self.model)),
            shutil.disk_usage(self.run.folder).free,
        )
        if free < needed:
            raise UnavailableError(
                f"the disk of {self.run.folder} has {free / 1e9:.2f} GB free and a checkpoint needs "
                f"{needed / 1e9:.2f} GB; free some space and give the same command: "
                f"the run goes on from its last checkpoint"
            )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Stop before a step that would put a number that is none into the weights."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # fp16's scaler meets infinite gradients in the ordinary course of things, and skips their step itself.
        if norm is not None and not self.args.fp16 and not math.isfinite(norm):
            raise TrainingError(
                f"the gradient of step {self.state.global_step + 1} is not a finite number (norm {float(norm)}), "
                f"so the step was not taken and no checkpoint was touched; try a lower learning_rate, "
                f"more warmup_steps, or precision: fp32"
            )
        return norm


class _UndisturbingHandler(CallbackHandler):
    """Callbacks may draw random numbers, to sample a text, say; training does not notice."""

    def call_event(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        with random_state_preserved():
            return cast(TrainerControl, super().call_event(event, args, state, control, **kwargs))


@contextlib.contextmanager
def random_state_preserved() -> Iterator[None]:
    """Put every global random state back as it was."""
    python_state, numpy_state, torch_state = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


def token_mean_loss(task: Task) -> Callable[..., torch.Tensor]:
    """The mean loss per predicted token of the whole global batch, whatever the micro-batch.

    Some models (BERT's among them, transformers 5.23) take the mean of their own micro-batch even when they are
    told the number of tokens in the step; then accumulation would change the numbers.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        logits = outputs.logits.float()
        if task == "causal-lm":
            logits, labels = logits[:, :-1], labels[:, 1:]
        flat, targets = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        if num_items_in_batch is None:
            return cross_entropy(flat, targets)
        return cross_entropy(flat, targets, reduction="sum") / num_items_in_batch

    return loss


def training_arguments(
    training: Training,
    *,
    output: Path,
    micro_batch_size: int,
    accumulation: int,
    device_kind: str,
    evaluates: bool = True,
) -> TrainingArguments:
    """A recipe's settings as the Trainer takes them. When to log, evaluate and save is `Schedule`'s business."""
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=micro_batch_size,
        per_device_eval_batch_size=micro_batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps or -1,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        lr_scheduler_kwargs=dict(training.lr_scheduler_kwargs),
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        seed=training.seed,
        data_seed=training.seed,
        bf16=training.precision == "bf16",
        fp16=training.precision == "fp16",
        use_cpu=device_kind == "cpu",
        torch_compile=training.torch_compile,
        dataloader_num_workers=training.dataloader_num_workers,
        dataloader_drop_last=False,
        report_to=list(training.report_to) or "none",
        prediction_loss_only=True,
        remove_unused_columns=False,
        include_num_input_tokens_seen="all",
        # The Trainer would log a loss that is not a number as 0.0 and go on.
        logging_nan_inf_filter=False,
        save_strategy="no",
        # early-stopping asks whether there are evaluations; Schedule says when.
        eval_strategy="steps" if evaluates else "no",
        eval_steps=10**9,
        logging_strategy="no",
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    # With several GPUs and one process the Trainer would use DataParallel and multiply the batch by their number.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
