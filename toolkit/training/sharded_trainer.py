"""A Trainer whose model may be sharded over the processes, and whose checkpoints are for any number of them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.trainer import SCHEDULER_NAME

from toolkit.recipe.settings import Training
from toolkit.storage import checkpoint
from toolkit.storage.async_saver import AsyncSaver, Write
from toolkit.system import distributed
from toolkit.training.checkpoint_weights import CompleteTrainer
from toolkit.training.loss import IGNORE_INDEX
from toolkit.training.loss_guard import named_state
from toolkit.training.optimizer_state import (
    holds_shards,
    load_with_new_settings,
    own_files,
    read_state,
    write_shards,
)
from toolkit.training.sharding import ShardedModel, gather

RANDOM_STATES = re.compile(r"rng_state(_[0-9]+)?\.pth")
"""The files with the RNG state of each process, as the Trainer names them."""


class ShardingTrainer(CompleteTrainer):
    """A Trainer whose model is whole until `shard_model` is called, if the recipe shards it."""

    saver: AsyncSaver

    def __init__(self, *, settings: Training, with_new_settings: bool, **of_the_trainer: Any) -> None:
        """With `with_new_settings`, an optimizer is loaded without the settings that it was saved with."""
        self.settings = settings
        self.with_new_settings = with_new_settings
        self.sharded: ShardedModel | None = None
        self.shards = settings.shard and distributed.world_size() > 1
        """Whether the model is going to be sharded, or is."""
        super().__init__(**of_the_trainer)

    def shard_model(self) -> None:
        """Shard the model where the recipe asks for it; before its optimizer is built."""
        if self.shards and self.sharded is None:
            model: Any = self.model
            self.sharded = ShardedModel(model, self.settings, self.args.device)

    def _writes_of_shards(self, check: Callable[[Iterable[tuple[str, torch.Tensor]]], None]) -> list[Write]:
        """How a sharded optimizer's state is written, by all processes together; nothing, if it is whole.

        `check` raises an error if a tensor has non-finite values.
        """
        if not self.sharded:
            return []
        optimizer: Any = self.optimizer
        rank, saver, step = self.args.process_index, self.saver, self.state.global_step
        writes: list[Write] = [
            lambda folder: check(named_state(optimizer.state)),
            lambda folder: write_shards(optimizer, folder),
            lambda folder: checkpoint.list_own(
                folder, own_files(folder, rank), run_id=saver.run.id, step=step, rank=rank
            ),
        ]
        return writes

    def reshard(self) -> None:
        """Free gathered weights, where there are any."""
        if self.sharded:
            self.sharded.reshard()

    def finished_model(self) -> Any:
        """The model with all of its weights, in the main process; all processes have to call this."""
        if self.sharded:
            return self.sharded.whole()
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, and keep it from wrapping a sharded model in DDP."""
        super().create_accelerator_and_postprocess()
        prepare = self.accelerator.prepare_model

        def prepared(model: Any, *positional: Any, **named: Any) -> Any:
            if self.sharded:
                return prepare(model, device_placement=False, evaluation_mode=True)
            return prepare(model, *positional, **named)

        self.accelerator.prepare_model = prepared

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """Leave a model that is going to be sharded in host memory: whole, it may not fit on the device."""
        if not self.shards:
            super()._move_model_to_device(model, device)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm of all gradients, over all shards."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return gather(norm, self.args.device) if isinstance(norm, torch.Tensor) else norm

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Fetch the micro-batches of the next step; in the last one of an epoch without what only fills up.

        accelerate gives all processes batches of one size, with blocks from the beginning of the epoch once there are
        no others. Their tokens are neither predicted here nor counted: the step is that of any number of processes.
        """
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if samples and self.args.world_size > 1 and self.accelerator.gradient_state.end_of_dataloader:
            # accelerate's own `remainder` is -1 in an epoch that is resumed (1.15).
            blocks: Any = self.train_dataset
            size = self.args.train_batch_size
            together = size * self.args.world_size
            if left := len(blocks) % together:
                samples[-1]["labels"][max(0, left - self.args.process_index * size) :] = IGNORE_INDEX
                items = self._get_num_items_in_batch(samples, device)
                self.state.num_input_tokens_seen -= (together - left) * samples[-1]["input_ids"][0].numel()
        return samples, items

    def _load_from_checkpoint(self, folder: str, model: Any = None) -> None:
        """Load the weights; of a sharded model each process reads the whole file and keeps its shard."""
        if not self.sharded:
            super()._load_from_checkpoint(folder, model)
            return
        from torch.distributed.tensor.experimental import implicit_replication

        self.reshard()
        with implicit_replication():  # a plain tensor is the whole, of which copy_ takes the shard
            super()._load_from_checkpoint(folder, model)

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        """Load both states; from another run's checkpoint, with the recipe's settings instead of the saved ones."""
        if folder is None or not self.with_new_settings:
            self._load_states(folder)
            return
        optimizer: Any = self.optimizer
        load_with_new_settings(optimizer, self.lr_scheduler, Path(folder), load=self._load_states)

    def _load_states(self, folder: str | None) -> None:
        """Load both, in shards or whole, into an optimizer of shards or a whole one."""
        if folder is None or not (self.sharded or holds_shards(Path(folder))):
            super()._load_optimizer_and_scheduler(folder)
            return
        optimizer: Any = self.optimizer
        scheduler: Any = self.lr_scheduler
        optimizer.load_state_dict(read_state(Path(folder), optimizer))
        scheduler.load_state_dict(torch.load(Path(folder, SCHEDULER_NAME), weights_only=True))

    def _load_rng_state(self, folder: str | None) -> None:
        """Restore the random number generators; for another number of processes, seed them anew, from step and rank.

        Blocks have randomness of their own, so this is for dropout, whose masks each process draws.
        """
        if folder is not None:
            saved = sum(RANDOM_STATES.fullmatch(file.name) is not None for file in Path(folder).iterdir())
            if saved != self.args.world_size:
                step = self.state.global_step
                set_seed((self.args.seed + 1_000_003 * step + 7_919 * (1 + self.args.process_index)) % 2**32)
                return
        super()._load_rng_state(folder)


def own_state(of_processes: Sequence[Mapping[str, Any]], *, rank: int, processes: int) -> Mapping[str, Any]:
    """A process's part of toolkit_state.json; of another number of processes, the mean of theirs.

    Each holds its own share of the loss, so many times as large as there are processes: the mean over them is the loss.
    """
    if len(of_processes) == processes:
        return of_processes[rank]

    def mean(values: Iterable[str]) -> str:
        return statistics.fmean(map(float.fromhex, values)).hex()

    guards = [one["guard"] for one in of_processes]
    losses = [mean(values) for values in zip(*(guard["losses"] for guard in guards), strict=True)]
    return {"loss_sum": mean(one["loss_sum"] for one in of_processes), "guard": {**guards[0], "losses": losses}}
