"""torch.compile of a training step: the repeated layer, once for all layers, and the loss.

A model whose layers are compiled one by one shares one compiled layer, which takes seconds where the whole model takes
a minute (https://docs.pytorch.org/tutorials/recipes/regional_compilation.html). Only passes that compute gradients run
compiled: evaluation and generation bring a new shape with every batch, and each would have to be compiled.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from toolkit.errors import UnavailableError
from toolkit.memory.oom_retry import OutOfMemoryCaught, is_out_of_memory
from toolkit.system.cache import cache_folder
from toolkit.system.rng_state import random_state_preserved
from toolkit.training.cpu_cross_entropy import summed_cross_entropy
from toolkit.training.loss import predicted_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_layers import GradientCheckpointingLayer

    from toolkit.training.loss import StepLoss
    from toolkit.training.trainer import RecipeTrainer

COMPILED_CODE = "TORCHINDUCTOR_CACHE_DIR"
"""The variable that says where torch keeps what it has compiled."""
MAX_SHAPES = 64
"""Shapes compiled per layer before torch gives up: a full batch, the last one, and the halves after an out-of-memory
error; torch's default is 8."""


def repeated_layers(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """The layers that the model stacks, such as its decoder blocks."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextlib.contextmanager
def compiled(model: PreTrainedModel, loss: StepLoss) -> Iterator[None]:
    """Run the layers and the loss of training steps compiled; afterwards the model is as it was.

    Each shape is compiled for itself: with dynamic shapes, which kernel runs would depend on which batch came first,
    and a resume would not be exact.
    """
    from torch._dynamo import config as tracing
    from torch._inductor import config as generating
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # torch's own is lost with /tmp; its imports have put it into the environment by now.
    if os.environ.get(COMPILED_CODE, default_cache_dir()) == default_cache_dir():
        os.environ[COMPILED_CODE] = str(cache_folder() / "compiled")
    layers: list[torch.nn.Module] = [*repeated_layers(model)] or [model.base_model]
    plain, of_strategy = loss.cross_entropy, loss.loss
    on_cpu = model.device.type == "cpu"
    # Otherwise kernels are chosen by timing them, and may sum in another order at the next start.
    chosen_by_rule = generating.patch(deterministic=torch.are_deterministic_algorithms_enabled())
    with tracing.patch(recompile_limit=MAX_SHAPES), chosen_by_rule:
        loss.cross_entropy = _in_training(plain, traced=summed_cross_entropy if on_cpu else plain)
        if of_strategy and of_strategy.compiled:
            loss.loss = replace(of_strategy, summed=of_strategy.compiled())
        for layer in layers:
            layer.forward = _in_training(layer.forward)
        try:
            yield
        finally:
            loss.cross_entropy, loss.loss = plain, of_strategy
            for layer in layers:
                del layer.forward


def _in_training(forward: Callable[..., Any], *, traced: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """`forward`, and where gradients are computed the same compiled, from `traced` if that compiles better."""
    fused = torch.compile(traced or forward, dynamic=False)

    def either(*args: Any, **named: Any) -> Any:
        return (fused if torch.is_grad_enabled() else forward)(*args, **named)

    return either


class TrialPass:
    """Forward and backward passes over the run's first micro-batch, before training; they leave no trace."""

    def __init__(self, trainer: RecipeTrainer) -> None:
        self._trainer = trainer
        data: Any = trainer.train_dataset
        collate: Any = trainer.data_collator
        self._batch = collate([data[number % len(data)] for number in range(trainer.retry.sequences)])

    def __call__(self) -> None:
        """Run one, and wait for the device."""
        self._run(cut=False)

    def of_each_length(self) -> None:
        """Run one with blocks of each length that the steps have."""
        self()
        if self._trainer.short:
            self._run(cut=True)

    def _run(self, *, cut: bool) -> None:
        trainer = self._trainer
        model: Any = trainer.components.model
        model.train()
        model.config.use_cache = trainer.args.use_cache  # as the Trainer does when it begins to train
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trainer.settings.precision)
        kind = trainer.args.device.type
        with random_state_preserved():
            inputs = trainer._prepare_inputs(dict(self._batch))
            inputs = trainer.short.cut(inputs, step=1) if cut else inputs
            tokens = predicted_tokens(inputs["labels"], trainer.task)
            with torch.autocast(kind, precision, enabled=precision is not None, cache_enabled=False):
                trainer.compute_loss(model, inputs, num_items_in_batch=tokens).backward()
        model.zero_grad(set_to_none=True)
        if kind == "cuda":
            torch.cuda.synchronize()


def refusal(trial: Callable[[], None]) -> str | None:
    """Why this machine cannot compile, in one line; None if the pass succeeds, or memory runs out in it.

    torch raises many types of errors, all of them RuntimeErrors, and a missing compiler shows in a part of their text.
    """
    with OutOfMemoryCaught():  # a step that runs out of memory is repeated in smaller pieces; a trial need not be
        try:
            trial()
        except (RuntimeError, ImportError) as error:
            if is_out_of_memory(error):
                raise
            return reason(error)
    return None


def reason(error: BaseException) -> str:
    """What torch says, without its advice: the last cause's first line that is more than the words before a cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith("raised:")), type(error).__name__)


def unavailable(why: str) -> UnavailableError:
    """The error of a recipe that wants its steps compiled, where that is not possible."""
    return UnavailableError(
        f"training.torch_compile: true, and torch.compile does not work here: {why}. On a CPU it needs a C++ compiler "
        f"and Python's headers (apt install g++ python3-dev), on a GPU Triton; or set torch_compile: auto, which does "
        f"without where it has to"
    )
