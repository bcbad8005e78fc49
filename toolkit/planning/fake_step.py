"""ResolvedRecipe -> Trace: a step of the real trainer, on fake tensors.

The forward pass, the loss, the backward pass, clipping, the optimizer and the evaluation are the trainer's own
methods, so that the plan follows whatever changes there. The second step is traced, because the first one starts
without optimizer state; and at most two of its micro-batches, because a third behaves like the second.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from toolkit.api import RunContext
from toolkit.planning import fake_components, fake_group, kernels
from toolkit.planning.trace import Trace
from toolkit.recipe.batch import BatchSplit, check_shards
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.storage.run_directory import RunDirectory
from toolkit.system import environment_variables
from toolkit.system.signals import StopRequest
from toolkit.training.components import Components, context_of
from toolkit.training.refusals import refusals_placed

if TYPE_CHECKING:
    import torch

    from toolkit.planning.tracker import StorageTracker
    from toolkit.training.trainer import RecipeTrainer


def trace(
    resolved: ResolvedRecipe, *, micro_batch_size: int, accumulation: int, processes: int = 1, per_host: int = 8
) -> Trace:
    """Run a step in which every tensor is fake, and return what it would take.

    With several processes it is the step of rank 0. Unless the recipe shards the model that is the step of a single
    process: DistributedDataParallel is not traced, because it reads the values of tensors.

    Args:
        resolved: the recipe.
        micro_batch_size: sequences of a pass, in each process.
        accumulation: passes of a step.
        processes: how many share a step.
        per_host: how many of them are on one host.

    Raises:
        RecipeError, UnavailableError: a plugin refuses, as it would in a run.
        PluginError: a plugin cannot work without values.
    """
    from toolkit.planning.tracker import StorageTracker
    from toolkit.system.rng_state import random_state_preserved

    passes = min(accumulation, 2)
    with (
        environment_variables.set_aside(),
        tempfile.TemporaryDirectory(prefix="planned-") as folder,  # the Trainer creates its output folder at once
        random_state_preserved(),
        _as_one_process(),
        fake_components.fake_tensors() as mode,
    ):
        context = replace(context_of(resolved, Path(folder)), log=_UNHEARD)  # the run's own build logs these messages
        built, built_bytes = fake_components.components(resolved, context)
        ledger = StorageTracker(vocabulary_size=_vocabulary_size(built))
        objective = type(built.objective)
        with fake_components.needs_no_values("objective", objective), refusals_placed(resolved.recipe, ("objective",)):
            batch = fake_components.batch(built, context, mode, size=micro_batch_size)
        trainer = _trainer(resolved, context, built, micro_batch_size=micro_batch_size, accumulation=accumulation)
        shards = processes if resolved.training.shard else 1
        with (
            fake_group.joined(processes) if shards > 1 else contextlib.nullcontext(),
            fake_components.needs_no_values("training step", None),
            kernels.as_on(resolved.device.kind),
            kernels.chunks_counted(ledger),
        ):
            if shards > 1:
                shards = _shard(trainer, resolved, processes=processes, per_host=min(per_host, processes))
            model = _prepared(trainer, ledger)
            with ledger:
                ledger.enter(batch.values(), "batch")
                _step(trainer, model, ledger, batch, passes=1, sharded=shards > 1)
                ledger.new_page()
                _step(trainer, model, ledger, batch, passes=passes, sharded=shards > 1)
                ledger.phase = "evaluation"
                if shards > 1:
                    trainer.reshard()
                trainer.prediction_step(model, dict(batch), prediction_loss_only=True)
            return ledger.trace(
                micro_batch_size=micro_batch_size, passes=passes, model=model, built_bytes=built_bytes, shards=shards
            )


def _trainer(
    resolved: ResolvedRecipe, context: RunContext, built: Components, *, micro_batch_size: int, accumulation: int
) -> RecipeTrainer:
    from toolkit.storage.async_saver import AsyncSaver
    from toolkit.storage.metrics_log import MetricsLog
    from toolkit.training.build import build_trainer
    from toolkit.training.loss_guard import LossGuard
    from toolkit.training.status import TrainingStatus

    class NoGuard(LossGuard):
        """Judges nothing, because it would have to read values; fake tensors have none."""

        def judge(self, **_: Any) -> bool:
            return False

        def check_gradient(self, **_: Any) -> None:
            return None

    # accelerate refuses fp16 on a CPU; bf16 has the same size.
    precision = "bf16" if resolved.training.precision == "fp16" else resolved.training.precision
    changed = resolved.with_training(precision=precision, report_to=())
    log = MetricsLog(RunDirectory(context.folder), lambda event: None)
    return build_trainer(
        replace(changed, device=replace(resolved.device, kind="cpu")),
        built,
        context,
        BatchSplit(micro_batch_size, accumulation, processes=1),
        saver=AsyncSaver(log.run, keep=1, keep_every=None, in_background=False, log=log),  # nothing is saved
        log=log,
        status=TrainingStatus(),
        stop=StopRequest(),
        guard=NoGuard,
    )


def _shard(trainer: RecipeTrainer, resolved: ResolvedRecipe, *, processes: int, per_host: int) -> int:
    """Shard the trainer's model as a run does; returns among how many processes.

    Raises:
        RecipeError: it is to be sharded within hosts, and these have one process each, or one has fewer than others.
    """
    import torch

    from toolkit.training.sharding import ShardedModel

    settings, within_host = resolved.training, resolved.training.shard_within_host
    check_shards(resolved, processes=processes, per_host=per_host)
    if within_host and processes % per_host:
        raise resolved.recipe.error(
            f"within_host: each host has to run as many processes as the others, and {processes} are no multiple of "
            f"the {per_host} of a host",
            resolved.set_at("shard_within_host"),
        )
    model: Any = trainer.model
    with fake_components.real_tensors():  # a mesh has the numbers of the ranks in tensors
        mesh = fake_group.mesh(processes, per_host=per_host, within_host=within_host)
    trainer.sharded = ShardedModel(
        model, settings.model_copy(update={"shard_cpu_offload": False}), torch.device("cpu"), mesh=mesh
    )
    return per_host if within_host else processes


_UNHEARD = logging.Logger("toolkit.planning")
_UNHEARD.disabled = True


def _prepared(trainer: RecipeTrainer, ledger: StorageTracker) -> torch.nn.Module:
    """The model and the optimizer as the trainer prepares them, with hooks that report to the ledger."""
    import torch

    trainer._tr_loss = torch.zeros(())
    trainer.create_optimizer()
    model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda trained: ledger.enter([trained.grad] if trained.grad is not None else [], "gradients")
            )
    model.register_forward_pre_hook(lambda *_: _begin(ledger, "forward"))
    model.register_forward_hook(lambda *_: _begin(ledger, "loss"))
    ledger.enter([*model.parameters(), *model.buffers()], "weights")
    return cast("torch.nn.Module", model)


def _begin(ledger: StorageTracker, phase: Any) -> None:
    if ledger.phase != "evaluation":
        ledger.phase = phase


def _step(
    trainer: RecipeTrainer,
    model: torch.nn.Module,
    ledger: StorageTracker,
    batch: dict[str, torch.Tensor],
    *,
    passes: int,
    sharded: bool,
) -> None:
    """One optimizer step, as in the trainer's loop."""
    import torch

    tokens = torch.tensor(batch["labels"].numel())
    trainer.current_gradient_accumulation_steps = passes
    trainer.begin_step(model, tokens)
    for number in range(passes):
        trainer.accelerator.gradient_state._set_sync_gradients(number == passes - 1)
        ledger.phase = "forward"
        trainer.training_step(model, dict(batch), tokens)
        if sharded:  # FSDP2 sets the gradients of shards itself
            gradients = (parameter.grad for parameter in model.parameters())
            ledger.enter((gradient for gradient in gradients if gradient is not None), "gradients")
    ledger.phase = "optimizer step"
    if trainer.args.max_grad_norm > 0:
        trainer._clip_grad_norm(model)  # type: ignore[no-untyped-call]  # transformers has no annotation for it
    optimizer: Any = trainer.optimizer
    optimizer.step()
    model.zero_grad()


def _vocabulary_size(built: Components) -> int:
    head: Any = built.model.get_output_embeddings()
    rows = getattr(head, "weight", None)
    return int(rows.shape[0]) if rows is not None else len(built.tokenizer)


@contextlib.contextmanager
def _as_one_process() -> Iterator[None]:
    """Hide the run's other processes from the trainer: a plan is made by one process alone."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    environment = {name: os.environ.pop(name) for name in names if name in os.environ}
    states = [(state, dict(state._shared_state)) for state in (PartialState, AcceleratorState, GradientState)]
    for state, _ in states:
        state._shared_state.clear()
    try:
        yield
    finally:
        os.environ.update(environment)
        for state, shared in states:
            state._shared_state.clear()
            state._shared_state.update(shared)
