"""Whether the steps of a run are compiled: as the recipe says, or, with `auto`, where the run is long enough for it.

What `auto` decides becomes part of the run's identity, because compiled kernels round differently; so a resume
computes the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from toolkit.events import Listener, Message
from toolkit.formatting import counted, duration, size
from toolkit.lifecycle.comparison import COMPILE_KEY
from toolkit.memory.budget import own_share
from toolkit.planning.overhead import COMPILER_BYTES
from toolkit.planning.worth_compiling import MIN_SAVED_SHARE, WORTH_TRYING_SECONDS, may_compile
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.storage.run_directory import RunDirectory
from toolkit.system import distributed

if TYPE_CHECKING:
    from toolkit.training.trainer import RecipeTrainer

LOWEST_MFU = 0.01
"""No step makes so little of its device, so that a short run is known without any trial."""
TIMED_PASSES = 3


def decide(
    resolved: ResolvedRecipe, trainer: RecipeTrainer, run: RunDirectory, *, steps: int, listener: Listener
) -> ResolvedRecipe:
    """The recipe with torch_compile true or false; where it is true, the first micro-batch has been compiled.

    Args:
        resolved: the recipe, with an earlier attempt's decision.
        trainer: before its first step; it is left as it is.
        run: records the decision.
        steps: how many are left.
        listener: hears the decision and its reason.

    Raises:
        UnavailableError: the recipe wants compiled steps, and they do not compile here.
    """
    from toolkit.training.compilation import TrialPass, compiled, refusal, unavailable

    wanted = resolved.training.torch_compile
    if wanted == "auto":
        is_compiled, why = distributed.by_main_process(lambda: _decide(resolved, trainer, run, steps))
        distributed.by_main_process(lambda: _record(run, is_compiled))
        if why:
            listener(Message(f"torch_compile: {why}"))
    elif wanted:
        trainer.context.progress("compiling")
        with compiled(trainer.components.model, trainer.components.loss):
            why = refusal(TrialPass(trainer).of_each_length)
        (is_refused,) = distributed.any_process(why is not None)
        if is_refused and resolved.recipe.training.torch_compile != "auto":
            raise unavailable(why or "another process of the run failed")
        is_compiled = not is_refused
        if is_refused:
            listener(
                Message(
                    f"torch_compile: off, though this run began with it: {why or 'another process failed'}. The steps "
                    f"go on uncompiled, and their numbers equal those of compiled ones up to rounding only"
                )
            )
    else:
        return resolved
    return resolved.with_training(torch_compile=is_compiled)


def _record(run: RunDirectory, is_compiled: bool) -> None:
    run.update(identity={**run.record["identity"], COMPILE_KEY: is_compiled})


def _decide(resolved: ResolvedRecipe, trainer: RecipeTrainer, run: RunDirectory, steps: int) -> tuple[bool, str | None]:
    """Whether to compile, and the reason if a person would ask for it: by measuring both."""
    from toolkit.memory.oom_retry import OutOfMemoryCaught, free_memory
    from toolkit.training.compilation import TrialPass, compiled, refusal

    training, kind = resolved.training, resolved.device.kind
    if not may_compile(training, resolved.device):
        return False, None
    if _ideal_seconds(resolved, trainer) * steps < LOWEST_MFU * WORTH_TRYING_SECONDS[kind]:
        return False, None
    if trainer.sharded:  # a pass needs all processes, which may find other times
        return False, "off: auto does not try it on a sharded model; torch_compile: true does"
    once, passes = TrialPass(trainer), trainer.args.gradient_accumulation_steps
    with OutOfMemoryCaught():
        plain = passes * _seconds(once, repeat=2)
        if plain * steps < WORTH_TRYING_SECONDS[kind]:
            return False, None
        if kind == "cpu" and not _has_room(resolved, run):
            return False, f"off, because the run leaves no {size(COMPILER_BYTES)} for the compiler"
        trainer.context.progress("compiling")
        begun = time.perf_counter()
        with compiled(trainer.components.model, trainer.components.loss):
            if why := refusal(once.of_each_length):
                return False, f"off, because torch.compile does not work here: {why}"
            compiling = time.perf_counter() - begun
            fused = passes * _seconds(once, repeat=TIMED_PASSES)
        plain = min(plain, passes * _seconds(once, repeat=TIMED_PASSES))
        saved = plain - fused
        figures = f"{duration(plain)} a step without, {duration(fused)} with, {counted(steps, 'step')} left"
        if saved < MIN_SAVED_SHARE * plain:
            return False, f"off, because compiled steps are not faster: {figures}"
        return True, f"on: {duration(compiling)} once, saves {duration(saved)} a step ({figures})"
    trainer.components.model.zero_grad(set_to_none=True)
    free_memory()
    return False, "off, because memory ran out when it was tried"


def _ideal_seconds(resolved: ResolvedRecipe, trainer: RecipeTrainer) -> float:
    """How long a step would take at the rate of a large matrix product."""
    from toolkit.planning.roofline import product_rate
    from toolkit.training.model_flops import flops_per_token

    block_size = trainer.context.block_size
    flops = flops_per_token(trainer.components.model, block_size) * block_size * resolved.training.global_batch_size
    return flops / distributed.world_size() / product_rate(resolved.device, resolved.training.precision)


def _has_room(resolved: ResolvedRecipe, run: RunDirectory) -> bool:
    device, record = resolved.device, run.record
    limit = record.get("memory_budget_bytes") or own_share(device.memory_bytes, device, distributed.world_size())
    return record.get("planned_memory_bytes", 0) + COMPILER_BYTES <= limit


def _seconds(once: Callable[[], Any], *, repeat: int) -> float:
    """The shortest of some passes, which is the one least disturbed by other programs."""
    found = []
    for _ in range(repeat):
        begun = time.perf_counter()
        once()
        found.append(time.perf_counter() - begun)
    return min(found)
