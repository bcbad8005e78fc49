"""All checks of this machine, in the order in which they are told."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from toolkit.doctor import folders, gpus, host, software
from toolkit.doctor.examination import Examination, Examined, Finding, examine
from toolkit.doctor.hub import hub
from toolkit.doctor.recipe_needs import needs
from toolkit.errors import PluginError, RecipeError, UnavailableError
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.system import control_group
from toolkit.system.cache import cache_folder
from toolkit.system.host_memory import available_memory_bytes
from toolkit.system.threads import processors

T = TypeVar("T")

Recipe = ResolvedRecipe | RecipeError | PluginError | UnavailableError | None
"""A recipe that is resolved for this device, or why it could not be; None if none was named."""
TORCH_DEADLINE = software.TORCH_SECONDS + 10


def examined(runs: Path, recipe: Recipe) -> Iterator[Examined]:
    """Examine this machine, and what a recipe needs of it.

    Args:
        runs: the folder of runs.
        recipe: the recipe.
    """
    wants_compiled = isinstance(recipe, ResolvedRecipe) and recipe.training.torch_compile is True
    yield from examine(_of_the_machine(runs, wants_compiled=wants_compiled))
    if recipe is None:
        return
    if not isinstance(recipe, ResolvedRecipe):
        yield Examined("recipe", "its plugins and options", [Finding("problem", str(recipe))])
        return
    yield Examined("recipe", "its plugins and options", [Finding("ok", f"{recipe.name} is valid here")])
    for need in needs(recipe, runs):
        yield Examined(need.check, need.looked_at, need.findings())


def _of_the_machine(runs: Path, *, wants_compiled: bool) -> list[Examination]:
    facts, cards = _once(software.torch_facts), _once(gpus.cards)

    def memory_of_cards() -> Iterator[Finding]:
        yield from gpus.card_memory(cards() or ())
        if len(cards() or ()) > 1 and facts().get("available"):
            yield from gpus.several(facts())

    def memory() -> Iterator[Finding]:
        return host.memory(available_memory_bytes(), control_group.limit_bytes())

    def compiler() -> Iterator[Finding]:
        on_gpu = bool(cards() and facts().get("available"))
        return software.compiler(facts(), on_gpu=on_gpu, needed=wants_compiled)

    return [
        Examination(
            "versions", "the ranges of pyproject.toml", lambda: software.versions(software.declared_requirements())
        ),
        Examination("torch", "import torch", lambda: software.torch_works(facts()), TORCH_DEADLINE, "problem"),
        Examination("GPUs", "nvidia-smi, torch.cuda", lambda: gpus.driver(cards(), facts()), TORCH_DEADLINE, "problem"),
        Examination("GPU memory", "nvidia-smi, NCCL", memory_of_cards, TORCH_DEADLINE),
        Examination("compiler", "torch.compile", compiler, TORCH_DEADLINE),
        Examination("processors", "cpu.max, OMP_NUM_THREADS", lambda: host.processors(processors(), os.environ)),
        Examination("memory", "MemAvailable, memory.max", memory),
        Examination("shared memory", "/dev/shm", host.shared_memory),
        Examination("limits", "ulimit", host.limits),
        Examination("launcher", "RANK, WORLD_SIZE, ...", lambda: host.launcher(os.environ)),
        Examination("variables", "ACCELERATE_*, ...", lambda: host.variables(os.environ)),
        Examination("clock", "the time", lambda: host.clock(time.time(), Path(__file__).stat().st_ctime)),
        _folder("runs", lambda: runs, variable="--runs (or TOOLKIT_RUNS)"),
        _folder("cache", cache_folder, variable="TOOLKIT_CACHE"),
        _folder("Hub's cache", _hub_cache, variable="HF_HOME"),
        Examination("Hub", "HF_ENDPOINT", hub),
    ]


def _folder(holds: str, where: Callable[[], Path], *, variable: str) -> Examination:
    def look() -> Iterator[Finding]:
        return folders.folder(where(), variable=variable, holds=holds, lasting=holds == "runs")

    return Examination(holds, variable, look, if_late="problem")


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME)


def _once(look: Callable[[], T]) -> Callable[[], T]:
    """Look once, for however many threads ask; the others wait."""
    lock, seen = threading.Lock(), list[T]()

    def answer() -> T:
        with lock:
            if not seen:
                seen.append(look())
            return seen[0]

    return answer
