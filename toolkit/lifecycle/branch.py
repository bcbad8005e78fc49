"""A run that starts from another run's checkpoint, with settings of its own: `recipe run X --from RUN@STEP`.

Weights, optimizer state, step, tokens seen and position in the data continue from the checkpoint; whatever the recipe
changes (learning rate, schedule, dropout, data, seed) applies from here on. The checkpoint is copied, so that neither
run needs the other any more, and run.json names the parent.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import RunMismatchError, UsageError
from toolkit.lifecycle.comparison import differences, lines
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.storage import checkpoint
from toolkit.storage.run_directory import RunDirectory
from toolkit.storage.runs_folder import find
from toolkit.system.files import copy_folder, read_json
from toolkit.training.optimizer_state import remove_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RESETS_OPTIMIZER_STATE = ("optimizer.plugin:", "training.optim:", "memory.frozen-layers", "model.mup_base_hidden_size:")
"""Settings whose change makes the optimizer's state incompatible, so that it starts empty."""


@dataclass(frozen=True)
class Parent:
    """A checkpoint that another run starts from."""

    run: RunDirectory
    step: int

    @property
    def folder(self) -> Path:
        """The checkpoint's folder."""
        return self.run.checkpoints / f"checkpoint-{self.step}"

    def is_of(self, child: RunDirectory) -> bool:
        """Whether this run started from here."""
        record = child.record.get("parent")
        return record is not None and (record["id"], record["step"]) == (self.run.id, self.step)


def parent(text: str, runs: Path) -> Parent:
    """Find RUN@STEP, or the newest checkpoint of RUN.

    Raises:
        UsageError: there is no such run or step, or its checkpoint is damaged.
    """
    name, _, step = text.rpartition("@") if "@" in text else (text, "", "")
    run = find(name, runs)
    steps = sorted(number for number, _ in checkpoint.numbered(run.checkpoints))
    there = f"{run.name} has checkpoints at the steps {', '.join(f'{number:,}' for number in steps) or '(none)'}"
    if "@" in text and not step.replace("_", "").isdigit():
        raise UsageError(f"--from {text}: the part after @ must be a step number; {there}")
    if not steps or (step and int(step) not in steps):
        raise UsageError(f"--from {text}: there is no such checkpoint; {there}")
    for number in [int(step)] if step else reversed(steps):
        reason = checkpoint.fault(run.checkpoints / f"checkpoint-{number}", run_id=run.id)
        if reason is None:
            return Parent(run, number)
        if step:
            raise UsageError(f"--from {text}: that checkpoint is damaged: {reason}; {there}")
    raise UsageError(f"--from {text}: no checkpoint of {run.name} is intact")


def begin(child: RunDirectory, parent: Parent, resolved: ResolvedRecipe) -> list[str]:
    """Copy the parent's checkpoint into a new run as its first, and return what the new settings change."""
    changes = lines(differences(parent.run, resolved))
    staging = child.checkpoints / checkpoint.STAGING / parent.folder.name
    copy_folder(parent.folder, staging)
    files = read_json(staging / checkpoint.MANIFEST)["files"]
    if reason := checkpoint.difference(staging, files):  # its run pruned it meanwhile
        raise UsageError(f"the checkpoint of step {parent.step} was deleted before it was copied: {reason}; try again")
    if any(change.startswith(RESETS_OPTIMIZER_STATE) for change in changes):
        remove_state(staging)
    record = {"id": parent.run.id, "run": parent.run.name, "folder": str(parent.run.folder.resolve())}
    child.update(parent={**record, "step": parent.step, "changes": changes})
    checkpoint.commit(staging, child.checkpoints / parent.folder.name, run_id=child.id, step=parent.step)
    staging.parent.rmdir()
    return changes


def require_steps_left(step: int, total_steps: int | None) -> None:
    """Check that a run that starts at this step has one to take; of unknown length, it may have.

    Raises:
        UsageError: it would be over before its first step.
    """
    if total_steps is not None and step >= total_steps:
        raise UsageError(
            f"--from: the run starts at step {step:,} but ends at step {total_steps:,}; raise training.max_steps, or "
            f"start from an earlier step"
        )


def check_fits(
    child: RunDirectory,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    total_steps: int,
) -> None:
    """Check the checkpoint against the recipe's model and tokenizer before loading would silently drop or misread it.

    Raises:
        RunMismatchError: its weights do not fit the recipe's model, or its token ids mean other tokens.
        UsageError: the run would be over before its first step.
    """
    require_steps_left(int(child.record["parent"]["step"]), total_steps)
    _check_tokens(child, folder, tokenizer)
    adapter = hasattr(model, "peft_config")
    file = folder / ("adapter_model.safetensors" if adapter else "model.safetensors")
    if not file.exists():
        kinds = ("adapters", "full weights") if adapter else ("full weights", "adapters")
        raise RunMismatchError.of(
            child.folder, [f"memory: the recipe trains {kinds[0]}, the checkpoint holds {kinds[1]}"]
        )
    if adapter:
        return  # peft itself refuses adapter weights of another shape
    saved, wanted = _shapes(file), {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    differences = [
        f"{name}: the checkpoint has {_shape(saved.get(name))}, the recipe's model {_shape(wanted.get(name))}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name) and not (name in tied and name not in saved)
    ]
    if differences:
        more = [f"and {len(differences) - 3} more"] if len(differences) > 3 else []
        raise RunMismatchError.of(child.folder, differences[:3] + more)


def _check_tokens(child: RunDirectory, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer that is learned from other documents has as many tokens, and other ones: shapes do not tell."""
    from transformers import AutoTokenizer

    load: Any = AutoTokenizer.from_pretrained  # which has no annotations
    before, now = load(str(folder), local_files_only=True).get_vocab(), tokenizer.get_vocab()
    moved = [token for token, number in before.items() if now.get(token) != number]
    if moved:
        parent = child.record["parent"]
        files = f"{parent['folder']}/checkpoints/{folder.name}/tokenizer*"
        raise RunMismatchError(
            f"{len(moved):,} of the {len(before):,} tokens that the checkpoint was trained with have another id, or "
            f"none, in the recipe's tokenizer ({moved[0]!r}, for example), so the model would misread the text; use "
            f"the checkpoint's own tokenizer: mkdir tokenizer && cp {files} tokenizer/, and in the recipe "
            f"tokenizer: {{plugin: pretrained, path: ./tokenizer}}",
            differences=[f"tokenizer: {len(moved):,} tokens differ"],
        )


def _shapes(file: Path) -> Mapping[str, list[int]]:
    """The tensor shapes in a safetensors file: its first 8 bytes are the length of a JSON header that lists them.

    https://github.com/huggingface/safetensors#format
    """
    with file.open("rb") as data:
        (length,) = struct.unpack("<Q", data.read(8))
        header: dict[str, Any] = json.loads(data.read(length))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def _shape(shape: list[int] | None) -> str:
    return "nothing" if shape is None else "x".join(map(str, shape)) or "a number"
