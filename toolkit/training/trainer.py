"""The Hugging Face Trainer with what this toolkit promises: atomic checkpoints, exact resume, exact running sums.

Training and the content of a checkpoint are the Trainer's. Overridden here are where and when a save is written, how
a step is repeated after running out of memory, and which optimizer takes it; in `undisturbed_training`, evaluation
and callbacks. docs/architecture.md lists the private methods of the Trainer that are overridden or called, with the
reasons; they are secured by the version range in pyproject.toml and by tests/unit/training/test_trainer.py.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import (
    DefaultFlowCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from toolkit.api import Optimizer, RunContext
from toolkit.data.packed_dataset import BLOCK_NUMBERS, IndexedCollator
from toolkit.errors import TrainingError
from toolkit.memory.oom_retry import OPTIMIZER, OOMRetry, survive_in
from toolkit.storage import checkpoint
from toolkit.storage.async_saver import STATE_FILE, AsyncSaver
from toolkit.storage.host_copy import HostCopy
from toolkit.storage.records import TrainingState, read_record
from toolkit.system import distributed
from toolkit.training.checkpoint_weights import save_weights
from toolkit.training.hf_optimizer import build_named
from toolkit.training.loss_guard import LossGuard, named_state
from toolkit.training.optimizer_in_backward import OptimizerInBackward
from toolkit.training.optimizer_state import load_with_new_settings
from toolkit.training.undisturbed_training import UndisturbedTrainer

if TYPE_CHECKING:
    from toolkit.recipe.settings import Training
    from toolkit.training.components import Components


class RecipeTrainer(UndisturbedTrainer):
    """A Trainer whose checkpoints are atomic, and whose steps are repeated in smaller pieces if memory runs out."""

    def __init__(
        self,
        *,
        components: Components,
        arguments: TrainingArguments,
        optimizer: Optimizer,
        settings: Training,
        context: RunContext,
        callbacks: list[TrainerCallback],
        guard: LossGuard,
        saver: AsyncSaver,
        steps: OOMRetry,
    ) -> None:
        super().__init__(
            task=context.task,
            steps=steps,
            progress=context.progress,
            model=components.model,
            args=arguments,
            train_dataset=components.data.train,
            eval_dataset=components.data.validation,
            processing_class=components.tokenizer,
            data_collator=IndexedCollator(components.objective.collator(components.tokenizer)),
            compute_loss_func=components.loss,
            callbacks=callbacks,
        )
        self.remove_callback(DefaultFlowCallback)  # the first of its class: the Trainer's own, not our Schedule
        self.remove_callback(PrinterCallback)  # the listener shows the logs
        self.context = context
        self.optimizer_plugin = optimizer
        self.settings = settings
        self.released: OptimizerInBackward | None = None
        self.loss = components.loss
        self.wrap_optimizer = components.wrap_optimizer
        self.guard = guard
        self.saver = saver
        self.settings_replaced_in: Path | None = None
        """A checkpoint of another run, loaded with the recipe's optimizer settings instead of those it was saved
        with."""
        self.seconds_before = 0.0
        """Time trained in earlier attempts."""
        self.started = time.monotonic()
        self._snapshot = HostCopy()
        self._check_state = guard.state_check(0)

    @property
    def evaluation_tokens(self) -> int:
        """Number of tokens in one evaluation."""
        return len(cast(Any, self.eval_dataset or ())) * self.context.block_size

    @property
    def seconds_trained(self) -> float:
        """Time trained, over all attempts."""
        return self.seconds_before + time.monotonic() - self.started

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the recipe's optimizer, or the one that a memory strategy names, with its wrappers."""
        if self.optimizer is None:
            self.optimizer = self.wrap_optimizer(self._new_optimizer())
            if self.settings.release_gradients:
                self.released = OptimizerInBackward(self._model, self.optimizer, check=self._check_gradient)
        return self.optimizer

    def _new_optimizer(self) -> torch.optim.Optimizer:
        if self.settings.optim is not None:
            return build_named(
                super().create_optimizer,
                settings=self.settings,
                arguments=self.args,
                model=cast(Any, self.model),
                replaced=self.optimizer_plugin,
            )
        return self.optimizer_plugin.build(
            self._model,
            learning_rate=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
            run=self.context,
        )

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss; a loss of hidden states takes over the work of the model's head."""
        loss: Any
        with self.loss.head_withheld():
            loss = super().compute_loss(*args, **kwargs)
        if self.released and isinstance(loss, torch.Tensor) and self._model.training:  # before backward steps
            self.released.left_out = self.guard.judge(
                step=self.state.global_step + 1, loss_sum=self._tr_loss + loss.detach(), norm=None
            )
        return loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Fetch the micro-batches of the next step, and tell the guard which blocks are in them."""
        samples, items = super().get_batch_samples(*args, **kwargs)
        self.guard.step_begins(self._tr_loss, [sample.pop(BLOCK_NUMBERS) for sample in samples])
        self.steps.step_begins()
        return samples, items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run forward and backward, in smaller pieces if memory has run out."""

        def compute(piece: Mapping[str, Any]) -> torch.Tensor:
            loss: torch.Tensor = Trainer.training_step(self, model, dict(piece), num_items_in_batch)
            return loss

        self._repeat_step = partial(
            self.steps.again, compute=compute, undo=partial(self._undo_step, model), step=self.state.global_step + 1
        )
        return self.steps.run(
            inputs, compute=compute, undo=partial(self._undo_step, model), step=self.state.global_step + 1
        )

    def _undo_step(self, model: torch.nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        self._tr_loss = self.guard.loss_before.clone()

    def survive_in_the_optimizer(self) -> None:
        """Repeat the step in smaller pieces also when it is the optimizer that runs out of memory."""

        def passes_again() -> None:
            loss = self._repeat_step(during=OPTIMIZER)  # this resets the running loss sum
            self._tr_loss += loss
            if self.args.max_grad_norm > 0:
                self._clip_grad_norm(self.model_wrapped)

        def half_moved() -> TrainingError:
            return self.steps.end(self.state.global_step + 1, OPTIMIZER, "it has moved some weights and others not")

        survive_in(cast(Any, self.optimizer), passes_again=passes_again, half_moved=half_moved)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs.pop(BLOCK_NUMBERS, None)  # in an evaluation
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Let the guard judge the step before the optimizer takes it."""
        if self.released:  # judged in compute_loss, and stepped in backward
            return self.released.norm()
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.guard.judge(step=self.state.global_step + 1, loss_sum=self._tr_loss, norm=norm):
            model.zero_grad(set_to_none=True)  # an optimizer skips parameters without a gradient
        return norm

    def _check_gradient(self, norm: torch.Tensor) -> None:
        self.guard.check_gradient(step=self.state.global_step + 1, norm=norm)

    # Saving: the Trainer writes the files; the saver decides where and when, and commits them.

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.saver.staging or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._check_state = self.guard.state_check(self.state.global_step)
        last = self.control.should_training_stop
        if last or not self.saver.in_background:
            self.progress("saving")
        self.saver.save(
            self.state.global_step,
            write=partial(super()._save_checkpoint, model, trial),
            state={
                # Hexadecimal, so that no digit is lost: the loss logged after a resume is that of an uninterrupted run.
                "of_processes": distributed.gathered(
                    {"loss_sum": float(self._tr_loss.item()).hex(), "guard": self.guard.state()}
                ),
                "total_loss": float(self._total_loss_scalar).hex(),
                "last_logged_step": self._globalstep_last_logged,
                "seconds_trained": self.seconds_trained,
                "sequences": self.steps.limit,
                "evaluation_left_out": self.evaluation_left_out,
                "ended": self.ended,
            },
            expected_bytes=checkpoint.expected_bytes(self._model),
            last=last,
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save weights, config and tokenizer: now, or a copy of them in the saver's thread.

        The Trainer's own writes names that it does not find again (`toolkit.training.checkpoint_weights`).
        """
        assert output_dir is not None
        if not self.args.should_save:
            self._check_state(self._model.named_parameters())
            return
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)  # other processes write their RNG state there
        in_background = self.saver.takes_a_copy
        weights = self._snapshot.of_model(self._model) if in_background else state_dict
        self.saver.for_later(partial(self._check_state, weights.items() if weights else self._model.named_parameters()))
        self.saver.for_later(partial(save_weights, self._model, folder, weights))
        # Two threads must not use the tokenizer at once; it does not change, so its files are cached.
        for name, content in self._tokenizer_files.items():
            self.saver.for_later(partial(folder.joinpath(name).write_bytes, content))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        optimizer: torch.optim.Optimizer = cast(Any, self.optimizer)
        if not self.saver.takes_a_copy or not self.args.should_save:
            self._check_state(named_state(optimizer.state))
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = self._snapshot.of_optimizer(optimizer)
        self.saver.for_later(partial(self._check_state, named_state(state["state"])))
        self.saver.for_later(partial(torch.save, state, Path(output_dir, OPTIMIZER_NAME)))
        torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir, SCHEDULER_NAME))

    @property
    def _model(self) -> torch.nn.Module:
        return cast(torch.nn.Module, self.model)

    @cached_property
    def _tokenizer_files(self) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            cast(Any, self.processing_class).save_pretrained(folder)
            return {file.name: file.read_bytes() for file in Path(folder).iterdir()}

    # Resuming

    def restore_sums(self, folder: Path) -> None:
        """Restore what the Trainer does not save; call it after training has begun, when the Trainer has reset it."""
        state = read_record(folder / STATE_FILE, TrainingState)
        own = state["of_processes"][min(self.args.process_index, len(state["of_processes"]) - 1)]
        self._tr_loss = torch.tensor(float.fromhex(own["loss_sum"]), device=self.args.device)
        self._total_loss_scalar = float.fromhex(state["total_loss"])
        self._globalstep_last_logged = state["last_logged_step"]
        self.guard.restore(own["guard"])
        self.seconds_before = state["seconds_trained"]
        self.started = time.monotonic()

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        """Load both states; from another run's checkpoint, with the recipe's settings instead of the saved ones."""
        if folder is None or self.settings_replaced_in != Path(folder):
            super()._load_optimizer_and_scheduler(folder)
            return
        load_with_new_settings(
            cast(Any, self.optimizer),
            cast(Any, self.lr_scheduler),
            Path(folder),
            load=super()._load_optimizer_and_scheduler,
        )
