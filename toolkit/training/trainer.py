"""The Hugging Face Trainer with what this toolkit promises: atomic checkpoints, exact resume, exact running sums.

Overridden here are what a save consists of, how a step is repeated after running out of memory, and which optimizer
takes it; in `guarded_trainer`, when the loss guard judges; in `undisturbed_training`, evaluation and callbacks.
docs/architecture.md lists the private methods of the Trainer that are overridden or called, with the reasons; they are
secured by the version range in pyproject.toml and by tests/unit/training/test_trainer.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import (
    DefaultFlowCallback,
    PrinterCallback,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from toolkit.api import Optimizer, RunContext
from toolkit.data.packed_dataset import BLOCK_NUMBERS, IndexedCollator
from toolkit.memory.oom_retry import OPTIMIZER, OOMRetry, RepeatableStep, RetryingOptimizer
from toolkit.storage import checkpoint
from toolkit.storage.async_saver import STATE_FILE, AsyncSaver, Content, Write
from toolkit.storage.host_copy import HostCopy
from toolkit.storage.records import TrainingState, read_record
from toolkit.system import distributed
from toolkit.system.signals import StopRequest
from toolkit.training.checkpoint_weights import save_weights
from toolkit.training.guarded_trainer import GuardedTrainer
from toolkit.training.hf_optimizer import build_named
from toolkit.training.loss_guard import LossGuard, named_state
from toolkit.training.optimizer_state import write_unsharded
from toolkit.training.sharded_trainer import own_state
from toolkit.training.short_blocks import ShortBlocks
from toolkit.training.status import TrainingStatus
from toolkit.training.values_unread import ValuesUnread
from toolkit.training.weight_average import AveragingOptimizer

if TYPE_CHECKING:
    from toolkit.recipe.resolve import ResolvedRecipe
    from toolkit.training.components import Components


class RecipeTrainer(GuardedTrainer):
    """A Trainer whose checkpoints are atomic, and whose steps are repeated in smaller pieces if memory runs out."""

    def __init__(
        self,
        *,
        resolved: ResolvedRecipe,
        components: Components,
        context: RunContext,
        arguments: TrainingArguments,
        callbacks: list[TrainerCallback],
        guard: LossGuard,
        saver: AsyncSaver,
        retry: OOMRetry,
        status: TrainingStatus,
        stop: StopRequest,
        short: ShortBlocks,
        with_new_settings: bool = False,
    ) -> None:
        """With `with_new_settings`, an optimizer is loaded without the settings that it was saved with."""
        super().__init__(
            guard=guard,
            settings=resolved.training,
            with_new_settings=with_new_settings,
            task=context.task,
            retry=retry,
            progress=context.progress,
            status=status,
            stop=stop,
            model=components.model,
            args=arguments,
            train_dataset=components.data.train,
            eval_dataset=components.data.validation,
            processing_class=components.tokenizer,
            data_collator=IndexedCollator(components.objective, components.tokenizer),
            compute_loss_func=components.loss,
            callbacks=callbacks,
        )
        self.remove_callback(DefaultFlowCallback)  # the first of its class: the Trainer's own, not RunCallback
        self.remove_callback(PrinterCallback)  # the listener shows the logs
        self.components = components
        self.context = context
        self.optimizer_plugin: Optimizer = resolved.recipe.optimizer.plugin
        self.saver = saver
        self.short = short
        self._step: RepeatableStep
        self._snapshot = HostCopy()

    def create_optimizer(self, model: Any = None) -> RetryingOptimizer:
        """Create the recipe's optimizer, or the one that a memory strategy names, with its wrappers."""
        if not isinstance(self.optimizer, RetryingOptimizer):
            plain = self.components.wrap_optimizer(self._new_optimizer())
            if self.settings.ema_width is not None:
                plain = AveragingOptimizer(plain, width=self.settings.ema_width)
            self.optimizer = RetryingOptimizer(
                self.guarded(plain, self.components.model, in_backward=self.settings.release_gradients),
                self.accelerator,
                passes_again=self._passes_again,
                half_moved=lambda: self.retry.end(
                    self._step.number, OPTIMIZER, "it has moved some weights and others not"
                ),
            )
        return self.optimizer

    def _new_optimizer(self) -> torch.optim.Optimizer:
        if self.settings.optim is not None:
            return build_named(
                super().create_optimizer,
                settings=self.settings,
                arguments=self.args,
                model=self.components.model,
                replaced=self.optimizer_plugin,
            )
        return self.optimizer_plugin.build(
            self.components.model,
            learning_rate=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
            run=self.context,
        )

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss; a loss of hidden states takes over the work of the model's head."""
        loss: Any
        with self.components.loss.head_withheld(), self._values_unread.of(inputs):
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss

    @cached_property
    def _values_unread(self) -> ValuesUnread:
        return ValuesUnread(self.components.model)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Fetch the micro-batches of the next step, and tell the guard which blocks are in them."""
        samples, items = super().get_batch_samples(*args, **kwargs)
        self.guard.step_begins(self._tr_loss, [sample.pop(BLOCK_NUMBERS) for sample in samples])
        self.begin_step(self.model_wrapped, items)
        return samples, items

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Count the predicted tokens of the next step."""
        step = self.state.global_step + 1
        labels = [self.short.cut({"labels": sample["labels"]}, step=step) for sample in batch_samples]
        return super()._get_num_items_in_batch(labels, device)

    def begin_step(self, model: Any, num_items_in_batch: Any) -> None:
        """Begin a step, whose micro-batches `training_step` is going to run."""
        number = self.state.global_step + 1

        def compute(piece: Mapping[str, Any]) -> torch.Tensor:
            cut = self.short.cut(piece, step=number)
            return super(RecipeTrainer, self).training_step(model, cut, num_items_in_batch)

        def undo() -> None:
            model.zero_grad(set_to_none=True)
            self._tr_loss = self.guard.loss_before.clone()

        self._step = RepeatableStep(self.retry, number, compute=compute, undo=undo)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run forward and backward, in smaller pieces if memory has run out."""
        return self._step.run(inputs)

    def _passes_again(self) -> None:
        """Recompute the step's gradients, because the optimizer ran out of memory."""
        loss = self._step.again(OPTIMIZER)  # this resets the running loss sum
        self._tr_loss += loss
        if self.args.max_grad_norm > 0:
            self._clip_grad_norm(self.model_wrapped)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs.pop(BLOCK_NUMBERS, None)  # in an evaluation
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared

    # Saving: what a checkpoint consists of; the saver decides where and when, and commits it.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.guard.settle()
        last = self.control.should_training_stop
        if last or not self.saver.in_background:
            self.progress("saving")
        self.store_flos()
        self.reshard()
        if self.settings.ema_width is not None:
            cast(Any, self.optimizer).eval()  # a checkpoint's weights are those that are evaluated and exported
        self.saver.save(self.state.global_step, self._content, last=last)

    def _content(self, copied: bool) -> Content:
        """A checkpoint of the step just taken; `copied`: of weights and optimizer state as they are now."""
        check = self.guard.state_check(self.state.global_step)
        model, optimizer = self.components.model, cast(Any, self.optimizer)
        now: list[Write] = [lambda folder: self._save_rng_state(str(folder))]
        together, later = self._writes_of_shards(check), list[Write]()
        whole = self.finished_model() if self.sharded else model
        if self.args.should_save:
            # The Trainer's own save writes names that it does not find again (`toolkit.training.checkpoint_weights`).
            weights = self._snapshot.of_model(model) if copied else None
            state = self._snapshot.of_optimizer(optimizer) if copied else optimizer.state_dict()
            scheduler: Any = self.lr_scheduler
            tokenizer_files = self._tokenizer_files
            now += [
                lambda folder: torch.save(scheduler.state_dict(), folder / SCHEDULER_NAME),
                lambda folder: self._save_scaler(str(folder)),
                self._write_trainer_state,
            ]
            later = [
                lambda folder: check(weights.items() if weights else whole.named_parameters()),
                lambda folder: save_weights(whole, folder, weights),
                # Two threads must not use the tokenizer at once; it does not change, so its files are cached.
                lambda folder: [Path(folder, name).write_bytes(content) for name, content in tokenizer_files.items()],
            ]
            if self.sharded:
                now.append(lambda folder: write_unsharded(optimizer, folder))
            else:
                later += [
                    lambda folder: check(named_state(state["state"])),
                    lambda folder: torch.save(state, folder / OPTIMIZER_NAME),
                ]
        else:
            now.append(lambda folder: check(model.named_parameters()))
            if not self.sharded:
                now.append(lambda folder: check(named_state(optimizer.state)))
        expected = checkpoint.expected_bytes(model, optimizer_states=self.settings.optimizer_states)
        return Content(now, later, self.state_dict(), expected, together)

    def _write_trainer_state(self, folder: Path) -> None:
        saved: Any = self.state.stateful_callbacks
        for part in [*self.callback_handler.callbacks, self.control]:
            if isinstance(part, ExportableState):
                name = type(part).__name__
                if isinstance(saved[name], list):  # of several callbacks of one class
                    saved[name].append(part.state())
                else:
                    saved[name] = part.state()
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    @cached_property
    def _tokenizer_files(self) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            self.components.tokenizer.save_pretrained(folder)
            return {file.name: file.read_bytes() for file in Path(folder).iterdir()}

    # Resuming

    def _run_epoch(self, *positional: Any, **named: Any) -> None:
        """Train for an epoch; first, in the one that a checkpoint is of, make up for what the Trainer leaves out.

        When training begins, the Trainer sets the running sums to zero. An evaluation that is made up may end training.
        """
        folder = named["resume_from_checkpoint"]
        if folder is not None and named["epoch"] == named["epochs_trained"]:
            self.load_state_dict(read_record(Path(folder, STATE_FILE), TrainingState))
            self.make_up_evaluation()
        if not self.control.should_training_stop:
            super()._run_epoch(*positional, **named)

    def load_end(self, folder: Path) -> None:
        """Load a checkpoint after which there is nothing to train."""
        self._load_from_checkpoint(str(folder))
        saved = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        self.state.global_step, self.state.num_input_tokens_seen = saved.global_step, saved.num_input_tokens_seen
        self.status.load_state_dict(read_record(folder / STATE_FILE, TrainingState))

    def state_dict(self) -> dict[str, Any]:
        """What the Trainer does not save: the content of toolkit_state.json."""
        # Hexadecimal, so that no digit is lost: the loss logged after a resume is that of an uninterrupted run.
        own = {"loss_sum": float(self._tr_loss.item()).hex(), "guard": self.guard.state_dict()}
        return {
            "of_processes": distributed.gathered(own),
            "total_loss": float(self._total_loss_scalar).hex(),
            "last_logged_step": self._globalstep_last_logged,
            **self.status.state_dict(),
            **self.retry.state_dict(),
        }

    def load_state_dict(self, state: TrainingState) -> None:
        """Restore it."""
        own = own_state(state["of_processes"], rank=self.args.process_index, processes=self.args.world_size)
        self._tr_loss = torch.tensor(float.fromhex(own["loss_sum"]), device=self.args.device)
        self._total_loss_scalar = float.fromhex(state["total_loss"])
        self._globalstep_last_logged = state["last_logged_step"]
        self.guard.load_state_dict(own["guard"])
        self.status.load_state_dict(state)
