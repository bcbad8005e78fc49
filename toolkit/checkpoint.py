"""Checkpoints that are whole or are not there.

The Trainer writes its own files into a staging folder; `commit` lists them with size and SHA-256 in a manifest,
forces everything to disk and renames the folder. Whatever a crash leaves behind is either a complete checkpoint
or a staging folder that nobody reads. Before one is loaded it is verified, and an older one serves if it fails.

(The Trainer's own search takes the highest number without looking inside: a half-written folder hides the
good one beside it. transformers 5.23, `get_last_checkpoint`.)
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.run_directory import read_json, sync, write_json

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
STAGING = ".staging"
FOLDER = re.compile(r"checkpoint-([0-9]+)")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was verified."""

    folder: Path
    step: int


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that cannot be used, and why."""

    folder: Path
    reason: str


def commit(staging: Path, final: Path, *, run_id: str, step: int) -> int:
    """Turn a staging folder into a checkpoint and return its size in bytes."""
    # Pickled, unread by a resume that builds its own arguments, and it would hold whatever token they hold.
    (staging / "training_args.bin").unlink(missing_ok=True)
    mode = 0o666 & ~_umask()
    files: dict[str, dict[str, int | str]] = {}
    total = 0
    for file in _files(staging):
        file.chmod(mode)  # safetensors makes its files 0600, so that a group could read half of a checkpoint
        sync(file)
        name = str(file.relative_to(staging))
        size = file.stat().st_size
        files[name] = {"bytes": size, "sha256": _sha256(file)}
        total += size
    write_json(staging / MANIFEST, {"run_id": run_id, "step": step, "files": files})
    for folder in {file.parent for file in _files(staging)}:
        sync(folder)
    if final.exists():  # a damaged one of the same step, else the run would have gone on from it
        final.rename(_free_name(final.with_name(f".damaged-{final.name}")))
    staging.rename(final)
    sync(final.parent)
    return total


def fault(folder: Path, *, run_id: str) -> str | None:
    """Say why a checkpoint cannot be used; None if it is whole and this run's."""
    try:
        manifest = read_json(folder / MANIFEST)
        listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, AssertionError, KeyError, TypeError, AttributeError):
        return "its manifest is missing or cannot be read"
    if manifest.get("run_id") != run_id:
        return "it belongs to another run"
    if (match := FOLDER.fullmatch(folder.name)) is None or manifest.get("step") != int(match[1]):
        return "its manifest is of another step"
    for name, (size, digest) in listed.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes instead of {size:,}"
        if _sha256(file) != digest:
            return f"the content of {name} has changed on disk"
    return None


def newest_intact(checkpoints: Path, *, run_id: str) -> tuple[Checkpoint | None, list[Skipped]]:
    """Return the newest checkpoint that is whole, and those newer ones that are not."""
    skipped: list[Skipped] = []
    for step, folder in sorted(numbered(checkpoints), reverse=True):
        reason = fault(folder, run_id=run_id)
        if reason is None:
            return Checkpoint(folder, step), skipped
        skipped.append(Skipped(folder, reason))
    return None, skipped


def prune(checkpoints: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, each moved aside first so that none is ever half there."""
    for _, folder in sorted(numbered(checkpoints), reverse=True)[keep:]:
        doomed = _free_name(folder.with_name(f".removing-{folder.name}"))
        folder.rename(doomed)
        shutil.rmtree(doomed)


def clean(checkpoints: Path) -> None:
    """Remove what a crash has left: staging folders and half-removed checkpoints. Damaged ones stay to be seen."""
    for folder in checkpoints.glob(".*"):
        if folder.name.startswith((STAGING, ".removing-")):
            shutil.rmtree(folder)


def numbered(checkpoints: Path) -> list[tuple[int, Path]]:
    """The folders named checkpoint-STEP, with their steps, in no order."""
    matches = [(FOLDER.fullmatch(folder.name), folder) for folder in checkpoints.iterdir()]
    return [(int(match[1]), folder) for match, folder in matches if match]


def expected_bytes(model: torch.nn.Module) -> int:
    """About what a checkpoint takes: the trained weights, and two states of the optimizer for each of them."""
    trained = sum(parameter.numel() * 4 for parameter in model.parameters() if parameter.requires_grad)
    adapters_only = hasattr(model, "peft_config")
    weights = trained if adapters_only else sum(p.numel() * p.element_size() for p in model.parameters())
    return weights + 2 * trained


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)


def _free_name(wanted: Path) -> Path:
    number, name = 1, wanted
    while name.exists():
        number += 1
        name = wanted.with_name(f"{wanted.name}.{number}")
    return name


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
