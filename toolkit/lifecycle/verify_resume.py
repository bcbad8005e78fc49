"""Proves on a small copy of a recipe that its runs resume exactly: trains, kills with SIGKILL, resumes, compares.

The copy is the rehearsal's: the recipe's own model architecture, objective, optimizer, strategies, callbacks and
exporters, on this machine, with the rehearsal's data. One run is left alone. Another is killed between two saves, then
in the middle of a save, and then finishes. Every loss, every weight, and the entire optimizer, learning-rate schedule
and RNG state have to be identical to the last bit.

Each attempt is a process of its own, because it is killed.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import REFUSALS, ToolkitError, TrainingError
from toolkit.events import Event, StepDone
from toolkit.lifecycle.rehearsal import REHEARSAL_STEPS, shrunken
from toolkit.recipe.resolve import load, resolve
from toolkit.storage import checkpoint
from toolkit.storage.run_directory import RunDirectory
from toolkit.system import environment_variables

SAVE_STEPS = 2
KILLED_AFTER = 3
"""The step after which the second run is killed: between the saves of steps 2 and 4, ..."""
KILLED_IN_SAVE_OF = 4
"""... and the step in whose save it is killed again."""

Kill = Literal["never", "between saves", "during a save"]


@dataclass(frozen=True)
class Verdict:
    """Whether a recipe resumes exactly."""

    exact: bool
    difference: str | None
    """The first difference, in words."""
    losses: int
    """Number of recorded losses compared, ..."""
    tensors: int
    """... and of tensors and values of weights, optimizer, learning-rate schedule and RNG state."""


@dataclass(frozen=True)
class _Attempt:
    """The task of one process."""

    recipe: str
    overrides: tuple[str, ...]
    plugin_folders: tuple[str, ...]
    runs: str
    run: str
    kill: Kill


@environment_variables.set_aside()
def verify_resume(recipe: str, *, overrides: Iterable[str] = (), plugin_folders: Iterable[Path] = ()) -> Verdict:
    """Train the small copy twice, once undisturbed and once killed twice, and compare.

    Raises:
        RecipeError, UsageError: something in the recipe is refused.
        UnavailableError: the machine or the network lacks something.
        TrainingError: the copy does not train.
    """
    overrides, folders = tuple(overrides), tuple(str(folder.resolve()) for folder in plugin_folders)
    load(recipe, overrides=overrides, plugin_folders=map(Path, folders))  # to report its mistakes here
    with tempfile.TemporaryDirectory(prefix="toolkit-verify-") as runs:
        kills: tuple[tuple[str, Kill], ...] = (
            ("undisturbed", "never"),
            ("killed", "between saves"),
            ("killed", "during a save"),
            ("killed", "never"),
        )
        for number, (run, kill) in enumerate(kills, start=1):
            _carry_out(_Attempt(recipe, overrides, folders, runs, run, kill), hash_seed=number)
        return compare(RunDirectory(Path(runs, "undisturbed")), RunDirectory(Path(runs, "killed")))


def _carry_out(attempt: _Attempt, *, hash_seed: int) -> None:
    # -P: the user's folder may hold a folder with a library's name, and -m alone would search it first.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "toolkit.lifecycle.verify_resume", json.dumps(asdict(attempt))],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
        # Python draws one per process, unless the user has set it; nothing may depend on it.
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
    )  # fmt: skip
    expected = 0 if attempt.kill == "never" else -signal.SIGKILL
    if done.returncode in REFUSALS:
        raise REFUSALS[done.returncode](done.stderr.strip())
    if done.returncode != expected:
        raise TrainingError(f"the small copy of the recipe does not train:\n{done.stderr.strip()}")


def compare(undisturbed: RunDirectory, killed: RunDirectory) -> Verdict:
    """Compare two finished runs bit by bit: their losses, and the training state in their last checkpoints."""
    pairs = list(itertools.zip_longest(_losses(undisturbed), _losses(killed)))
    for one, other in pairs:
        if one != other:
            return Verdict(False, f"{one} without a kill, but {other} with kills", len(pairs), 0)
    first, second = (dict(_state(run)) for run in (undisturbed, killed))
    for name in sorted(first.keys() | second.keys()):
        if not _same(first.get(name), second.get(name)):
            return Verdict(False, f"{name} differs after a kill", len(pairs), len(first))
    return Verdict(True, None, len(pairs), len(first))


def _losses(run: RunDirectory) -> list[str]:
    lines = [line for line in run.metrics() if line["kind"] in ("train", "eval")]
    return [f"{line['kind']} loss of step {line['step']} {line.get('loss', line.get('eval_loss'))}" for line in lines]


def _state(run: RunDirectory) -> Iterator[tuple[str, Any]]:
    """Everything in the last checkpoint that training reads, by name."""
    import torch
    from safetensors.torch import load_file
    from transformers.trainer_pt_utils import safe_globals

    step, folder = max(checkpoint.numbered(run.checkpoints))
    assert step == REHEARSAL_STEPS
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            yield from ((f"the weight {name}", tensor) for name, tensor in load_file(file).items())
        elif file.suffix in (".pt", ".pth"):
            with safe_globals():  # the types in numpy's RNG state
                content = torch.load(file, weights_only=True)
            yield from _leaves(content, f"{file.stem.replace('_', ' ')}:")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _leaves(child, f"{path} {key}")
    elif isinstance(value, (list, tuple)) and len(value) < 100:
        for index, child in enumerate(value):
            yield from _leaves(child, f"{path} {index}")
    else:
        yield path, value


def _same(one: Any, other: Any) -> bool:
    import numpy
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, numpy.ndarray):
        return numpy.array_equal(one, other)
    return bool(one == other)


def _attempt(attempt: _Attempt) -> None:
    """Carry out an attempt in this process, up to its kill if it has one."""
    from toolkit.lifecycle.launch import run
    from toolkit.system.device import detect

    recipe = load(attempt.recipe, overrides=attempt.overrides, plugin_folders=map(Path, attempt.plugin_folders))
    device = detect()
    small = shrunken(recipe, resolve(recipe, device))
    # Set last, because a strategy such as frequent-saves sets its own.
    resolved = resolve(small, device).with_training(
        save_steps=SAVE_STEPS, save_minutes=None, save_total_limit=REHEARSAL_STEPS, save_in_background=True
    )
    checkpoints = RunDirectory(Path(attempt.runs, attempt.run)).checkpoints

    def kill_between_saves(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == KILLED_AFTER:
            saved = checkpoints / f"checkpoint-{SAVE_STEPS}"
            deadline = time.monotonic() + 60
            while not saved.exists() and time.monotonic() < deadline:  # the saver's thread is about to
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    def kill_during_a_save(event: str, arguments: tuple[Any, ...]) -> None:
        # Python calls its audit hooks for every file that it opens: the manifest is the last one of a save.
        if event == "open" and f"checkpoint-{KILLED_IN_SAVE_OF}/.{checkpoint.MANIFEST}" in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    if attempt.kill == "during a save":
        sys.addaudithook(kill_during_a_save)
    listener = kill_between_saves if attempt.kill == "between saves" else lambda event: None
    run(resolved, runs=Path(attempt.runs), name=attempt.run, rehearsal=True, listener=listener)


if __name__ == "__main__":
    try:
        _attempt(_Attempt(**json.loads(sys.argv[1])))
    except ToolkitError as error:
        print(error, file=sys.stderr)  # noqa: T201 - to the process that waits for this one
        sys.exit(error.exit_status)
