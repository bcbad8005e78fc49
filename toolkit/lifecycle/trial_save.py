"""Before the first step: saves, loads and exports once what the run will save and export, with a copy of the model.

What transformers, peft or a plugin refuses to write, or writes so that it does not load, would else show at the first
save, at a resume, or after the last step. A small model is copied; in place of a large one its plugin makes a small
one, as for a rehearsal. The copy takes a step with made-up gradients, so that the optimizer has a state to save.
Nothing of this is left: not on the disk, not in the random numbers, not in the run's model and optimizer.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from toolkit.api import RunContext
from toolkit.events import Listener, Message
from toolkit.lifecycle.export import export, final_sample, ready, told_by
from toolkit.logs import libraries_quiet
from toolkit.recipe.batch import BatchSplit
from toolkit.recipe.document import Path_
from toolkit.recipe.resolve import ResolvedRecipe, resolve
from toolkit.recipe.schema import Component, Recipe
from toolkit.storage import checkpoint
from toolkit.storage.async_saver import STATE_FILE, AsyncSaver
from toolkit.storage.metrics_log import MetricsLog
from toolkit.storage.records import RunRecord, TrainingState, read_record, write_record
from toolkit.storage.run_directory import RUN_FILE, TRIAL_FOLDER, RunDirectory
from toolkit.system import distributed
from toolkit.system.disk import disk_faults_named
from toolkit.system.signals import StopRequest
from toolkit.training.components import Components
from toolkit.training.strategies import with_strategies

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from toolkit.training.trainer import RecipeTrainer

MAX_COPIED_BYTES = 32 * 2**20
"""Bytes of weights up to which the model itself is copied: to write and read them some times takes a second."""
MENTIONED_AFTER_SECONDS = 10.0
"""A trial that takes longer is mentioned."""
SAMPLE_TOKENS = 4
REFUSALS = (KeyError, NotImplementedError, RuntimeError, TypeError, UnpicklingError, ValueError)
"""What transformers, peft, torch and safetensors raise where they refuse something."""


@dataclass(frozen=True)
class Subject:
    """What is saved, loaded and exported in the place of the run's own."""

    resolved: ResolvedRecipe
    model: PreTrainedModel
    is_whole: bool
    """Whether it is a copy of the run's model, and no small one."""


def try_saving(
    resolved: ResolvedRecipe,
    components: Components,
    trainer: RecipeTrainer,
    run: RunDirectory,
    context: RunContext,
    total_steps: int,
    listener: Listener,
) -> None:
    """Save a checkpoint, load it, and export, all in a folder that is removed again.

    Args:
        resolved: the run's recipe.
        components: its tokenizer, model and data.
        trainer: the run's, before its first step; it is left as it is.
        run: whose folder holds the trial's for as long as it lasts.
        context: what the run's plugins know.
        total_steps: of the run, for its schedule.
        listener: hears of a trial that cannot be made, or takes long.

    Raises:
        RecipeError: something in the recipe cannot be saved, loaded or exported.
        UnavailableError: the disk refuses.
    """
    from toolkit.memory.oom_retry import OutOfMemoryCaught
    from toolkit.system.rng_state import random_state_preserved

    begun = time.monotonic()
    log = logging.getLogger("toolkit.lifecycle.trial_save")
    log.setLevel(logging.ERROR)  # of what plugins have to say, a person hears once
    # As a rehearsal, so that nothing is uploaded.
    context.progress("testing save and export")
    context = replace(context, folder=run.folder / TRIAL_FOLDER, rehearsal=True, log=log, progress=_unshown)
    with random_state_preserved(), libraries_quiet(), warnings.catch_warnings(), _folder(run) as scratch:
        warnings.simplefilter("ignore")
        if (subject := _subject(resolved, components, context, listener)) is None:
            return
        components = replace(components, model=subject.model)
        # Alone, a process can do without; others would wait for it.
        with OutOfMemoryCaught() if distributed.world_size() == 1 else contextlib.nullcontext():
            finished = _save_and_load(subject, components, trainer, scratch, context, total_steps)
            distributed.by_main_process(lambda: _export(subject, finished, components, context))
            distributed.barrier()
    if (seconds := time.monotonic() - begun) > MENTIONED_AFTER_SECONDS:
        listener(Message(f"trial save: a checkpoint and the exports were written and loaded, in {seconds:.0f} s"))


def _unshown(phase: str, done: int = 0, total: int | None = None, *, unit: str = "", detail: str = "") -> None:
    """Take the progress of what is only tried."""


@contextlib.contextmanager
def _folder(run: RunDirectory) -> Iterator[RunDirectory]:
    """An empty run directory that all processes share, and that is removed."""
    scratch = RunDirectory(folder := run.folder / TRIAL_FOLDER)
    try:
        if distributed.is_main_process():
            shutil.rmtree(folder, ignore_errors=True)
            scratch.checkpoints.mkdir(parents=True)
            write_record(folder / RUN_FILE, RunRecord, {**run.record, "id": uuid.uuid4().hex})
        distributed.barrier()
        yield scratch
    finally:
        if distributed.is_main_process():
            shutil.rmtree(folder, ignore_errors=True)


def _subject(
    resolved: ResolvedRecipe, components: Components, context: RunContext, listener: Listener
) -> Subject | None:
    """The model's copy, or a small one of its kind; None where there is neither."""
    model, recipe = components.model, resolved.recipe
    is_small = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) <= MAX_COPIED_BYTES
    if is_small:
        with contextlib.suppress(TypeError, RuntimeError):  # of what cannot be copied, another one is built
            return Subject(resolved, copy.deepcopy(model), is_whole=True)
    if recipe.model.plugin.rehearse() == recipe.model.plugin and not is_small:
        name = recipe.model.name
        listener(Message(f"saving is not tested beforehand: the model {name} has no rehearse() that makes it small"))
        return None

    def smaller(part: Component) -> Component:
        return replace(part, plugin=part.plugin.rehearse()) if part.path[0] in ("model", "memory") else part

    try:
        small = resolve(recipe.with_each(smaller), resolved.device)
        built = small.recipe.model.plugin.build(components.tokenizer, context)
        if (settings := getattr(model, "generation_config", None)) is not None:
            built.generation_config = copy.deepcopy(settings)
        return Subject(small, with_strategies(small, built, context), is_whole=False)
    except Exception as error:  # noqa: BLE001 - a plugin's own code; the run has its large model, and can do without
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        listener(Message(f"saving is not tested beforehand, because no small model could be built: {reason}"))
        return None


def _save_and_load(
    subject: Subject,
    components: Components,
    trainer: RecipeTrainer,
    scratch: RunDirectory,
    context: RunContext,
    total_steps: int,
) -> PreTrainedModel:
    """Write a checkpoint as the run's trainer does, verify it, load it as a resume does, and return the whole model."""
    import torch

    from toolkit.training.checkpoint_weights import save_weights
    from toolkit.training.sharding import local_part

    recipe = subject.resolved.recipe
    trial = _trainer_like(trainer, subject, components, scratch, context)
    trial.shard_model()
    with _refused_at(recipe, ("optimizer",), "the optimizer cannot take a step"):
        trial.create_optimizer_and_scheduler(total_steps)
        _take_step(trial)
    with _refused_at(recipe, ("model",), "a checkpoint of this model cannot be written"):
        if subject.is_whole and distributed.is_main_process():
            # The model itself, too: its weights may share memory, those of its copy do not.
            with disk_faults_named(scratch.folder, "a trial save"):
                save_weights(trainer.components.model, scratch.folder / "weights")
        trial._save_checkpoint(subject.model, None)
        trial.saver.take_result()  # where it is written in the background
        if trial.saver.failure is not None:
            raise trial.saver.failure
    distributed.barrier()  # for the first, which commits it
    folder = scratch.checkpoints / f"checkpoint-{trial.state.global_step}"
    reason = checkpoint.fault(folder, run_id=scratch.id)
    assert reason is None, reason
    trained = [p for p in subject.model.parameters() if p.requires_grad]
    saved = [local_part(parameter.detach()).clone() for parameter in trained]
    with _refused_at(recipe, ("model",), "a checkpoint of this model cannot be loaded"):
        with torch.no_grad():
            for parameter in trained:
                parameter.zero_()
        trial._load_from_checkpoint(str(folder))
        if not all(map(torch.equal, saved, map(local_part, trained))):
            raise ValueError("the loaded weights differ from the saved ones")
    with _refused_at(recipe, ("optimizer",), "the optimizer's state cannot be loaded from a checkpoint"):
        trial._load_optimizer_and_scheduler(str(folder))
    trial._load_rng_state(str(folder))
    trial.load_state_dict(read_record(folder / STATE_FILE, TrainingState))
    finished: PreTrainedModel = trial.finished_model()
    return finished


def _trainer_like(
    trainer: RecipeTrainer, subject: Subject, components: Components, scratch: RunDirectory, context: RunContext
) -> RecipeTrainer:
    """The run's trainer with another model and another place for its checkpoints."""
    import torch
    from transformers import TrainerState
    from transformers.trainer_callback import ExportableState

    from toolkit.training.build import build_trainer
    from toolkit.training.status import TrainingStatus

    log = MetricsLog(scratch, lambda event: None)
    trial = build_trainer(
        subject.resolved.with_training(report_to=()),
        components,
        context,
        BatchSplit(
            trainer.args.per_device_train_batch_size,
            trainer.args.gradient_accumulation_steps,
            distributed.world_size(),
        ),
        saver=AsyncSaver(scratch, keep=1, keep_every=None, in_background=trainer.saver.in_background, log=log),
        log=log,
        status=TrainingStatus(),
        stop=StopRequest(),
    )
    trial.callback_handler.callbacks = trainer.callback_handler.callbacks  # a checkpoint has their state
    stateful: list[Any] = [  # the annotation of TrainerState's parameter leaves out that they are ExportableState
        part for part in [*trial.callback_handler.callbacks, trial.control] if isinstance(part, ExportableState)
    ]
    trial.state = TrainerState(
        is_local_process_zero=trial.is_local_process_zero(),
        is_world_process_zero=trial.is_world_process_zero(),
        stateful_callbacks=stateful,
    )
    trial._tr_loss, trial._total_loss_scalar = torch.tensor(0.0), 0.0  # which the Trainer makes when it begins
    trial._globalstep_last_logged = 0
    return trial


def _take_step(trial: RecipeTrainer) -> None:
    """A step of the optimizer without a forward pass: the gradients are those of the weights' squares.

    At a learning rate of zero, as at the first step of a warm-up: only the state that it makes is of interest, and a
    rate that is far too high is the run's to stop for.
    """
    from toolkit.training.sharding import local_part

    wrapped: Any = trial.optimizer
    optimizer: torch.optim.Optimizer = wrapped.optimizer  # without a GradScaler, which expects a scaled loss
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    trained = [parameter for parameter in trial.components.model.parameters() if parameter.requires_grad]
    sum(local_part(one).float().square().sum() for one in trained).backward()  # type: ignore[union-attr]  # a model without parameters trains nothing
    if trial.released is None:  # else the backward pass has taken it
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _export(subject: Subject, model: PreTrainedModel, components: Components, context: RunContext) -> None:
    """Let the finished model write a few words and the exporters write what they write at the end."""
    resolved, tokenizer = subject.resolved, components.tokenizer
    with _refused_at(resolved.recipe, ("model",), "the finished model cannot generate"):
        final_sample(ready(model, context.task), tokenizer, context, max_new_tokens=SAMPLE_TOKENS)
    results = told_by(resolved, components.data.account.as_dict(), {"steps": 0, "tokens_seen": 0})
    export(resolved, model, tokenizer, results, context, lambda event: None)


@contextlib.contextmanager
def _refused_at(recipe: Recipe, path: Path_, what: str) -> Iterator[None]:
    """Give what a library refuses its place in the recipe."""
    from toolkit.memory.oom_retry import is_out_of_memory

    try:
        yield
    except REFUSALS as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise recipe.error(f"{what}: {reason}", path) from error
