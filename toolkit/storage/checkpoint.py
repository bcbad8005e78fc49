"""Atomic checkpoints: complete or absent.

The Trainer writes its own files into a staging folder; `commit` lists them with size and SHA-256 in a manifest,
forces everything to disk and renames the folder. A crash leaves either a complete checkpoint or a staging folder
that nobody reads. A checkpoint is verified before it is loaded; if that fails, an older one is used.

(The Trainer's own lookup takes the highest step without looking inside: a half-written folder hides the good one
beside it. transformers 5.23, `get_last_checkpoint`.)
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from toolkit.storage.records import FileEntry, Manifest, read_record, write_record
from toolkit.system.files import move_folder, set_mode, sync

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
OWN_MANIFEST = ".manifest-of-rank-"
"""Beginning of the names of the processes' own manifests, while a checkpoint of shards is written."""
STAGING = ".staging"
REMOVING = ".removing-"
DAMAGED = ".damaged-"
READ_BY_THE_TRAINER = (".pt", ".pth", ".bin", ".safetensors", ".distcp")
FOLDER = re.compile(r"checkpoint-([0-9]+)")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    folder: Path
    step: int


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that cannot be used, and why."""

    folder: Path
    reason: str


def commit(staging: Path, final: Path, *, run_id: str, step: int) -> int:
    """Turn a staging folder into a checkpoint and return its size in bytes."""
    # Pickled, and never read: a resume builds its own arguments. It would also leak any token that they hold.
    (staging / "training_args.bin").unlink(missing_ok=True)
    files = {**_listed_by_each(staging)}
    files |= listed(staging, except_for=files)
    write_record(staging / MANIFEST, Manifest, {"run_id": run_id, "step": step, "files": files})
    if final.exists() and fault(final, run_id=run_id) is None:  # from an earlier try, which the disk failed later on
        shutil.rmtree(staging)
        sync(final.parent)
        return sum(entry["bytes"] for entry in files.values())
    if final.exists():  # a damaged one of this step: the run would have resumed from an intact one
        move_folder(final, _free_name(final.with_name(f"{DAMAGED}{final.name}")), last=MANIFEST)
    move_folder(staging, final, last=MANIFEST)
    sync(final.parent)
    return sum(entry["bytes"] for entry in files.values())


def list_own(staging: Path, files: Iterable[Path], *, run_id: str, step: int, rank: int) -> None:
    """Write the manifest of the files that one of several processes has written; `commit` puts them together."""
    own = _forced(staging, files)
    write_record(staging / f"{OWN_MANIFEST}{rank}.json", Manifest, {"run_id": run_id, "step": step, "files": own})


def _listed_by_each(staging: Path) -> dict[str, FileEntry]:
    """The files in the processes' own manifests, which are removed.

    Raises:
        OSError: one process's file has not arrived: the hosts do not share the folder.
    """
    files: dict[str, FileEntry] = {}
    for manifest in sorted(staging.glob(f"{OWN_MANIFEST}*.json")):
        files |= read_record(manifest, Manifest)["files"]
        manifest.unlink()
    for name, entry in files.items():
        if not (staging / name).is_file() or (staging / name).stat().st_size != entry["bytes"]:
            raise OSError(f"{name}, which another process has written, is not whole here: do the hosts share a folder?")
    return files


def listed(folder: Path, *, except_for: Collection[str] = ()) -> dict[str, FileEntry]:
    """Set the modes of a folder's files, force them to disk, and return the size and SHA-256 of each."""
    files = _forced(folder, (file for file in _files(folder) if str(file.relative_to(folder)) not in except_for))
    for inner in {file.parent for file in _files(folder)}:
        sync(inner)
    return files


def _forced(folder: Path, files: Iterable[Path]) -> dict[str, FileEntry]:
    mode = 0o666 & ~_umask()
    entries: dict[str, FileEntry] = {}
    for file in files:
        set_mode(file, mode)  # safetensors creates files as 0600: a group could read only half of a checkpoint
        sync(file)
        entries[str(file.relative_to(folder))] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    return entries


def fault(folder: Path, *, run_id: str) -> str | None:
    """Say why a checkpoint cannot be used; None if it is intact and this run's.

    Raises:
        UnavailableError: a later version wrote it, so that falling back to an older checkpoint would be wrong.
    """
    try:
        manifest = read_record(folder / MANIFEST, Manifest)
    except (OSError, ValueError):
        return "its manifest is missing or cannot be read"
    if manifest["run_id"] != run_id:
        return "it belongs to another run"
    if (match := FOLDER.fullmatch(folder.name)) is None or manifest["step"] != int(match[1]):
        return "its manifest is of another step"
    for name in manifest["files"]:
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            return f"its manifest names {name}, which is not one of its files"
    for file in _files(folder):
        name = str(file.relative_to(folder))
        if file.suffix in READ_BY_THE_TRAINER and name not in manifest["files"]:
            return f"its manifest does not name {name}, so somebody else has put it there"
    return difference(folder, manifest["files"])


def difference(folder: Path, files: Mapping[str, FileEntry]) -> str | None:
    """Say how a folder differs from the files that were listed; None if it does not."""
    for name, entry in files.items():
        file, size = folder / name, int(entry["bytes"])
        try:
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size:,} bytes instead of {size:,}"
            if _sha256(file) != entry["sha256"]:
                return f"the content of {name} has changed on disk"
        except OSError as error:  # a bad sector, or a file of another user
            return f"{name} cannot be read: {error.strerror}"
    return None


def newest_intact(checkpoints: Path, *, run_id: str) -> tuple[Checkpoint | None, list[Skipped]]:
    """Return the newest intact checkpoint, and the newer ones that are not intact."""
    skipped: list[Skipped] = []
    for step, folder in sorted(numbered(checkpoints), reverse=True):
        reason = fault(folder, run_id=run_id)
        if reason is None:
            return Checkpoint(folder, step), skipped
        skipped.append(Skipped(folder, reason))
    return None, skipped


def prune(checkpoints: Path, *, keep: int, keep_every: int | None = None, verified: Collection[int]) -> None:
    """Remove checkpoints older than the newest `keep` of the verified steps, except milestones.

    Each is renamed first, so that none is ever half there. One that was never verified does not count: it may be
    damaged, and then the run would resume from the older one beside it.
    """
    there = sorted(step for step, _ in numbered(checkpoints) if step in verified)
    if not there:
        return
    oldest = there[-keep:][0]
    for step, folder in sorted(numbered(checkpoints)):
        if step < oldest and not (keep_every and step % keep_every == 0):
            _remove(folder)
    for folder in checkpoints.glob(f"{DAMAGED}*"):
        if (match := FOLDER.match(folder.name, len(DAMAGED))) and int(match[1]) < oldest:
            _remove(folder)


def _remove(folder: Path) -> None:
    doomed = _free_name(folder.with_name(f"{REMOVING}{folder.name.removeprefix('.')}"))
    move_folder(folder, doomed)
    sync(doomed.parent)  # otherwise a power cut may bring the old name back, with half of the files
    shutil.rmtree(doomed)


def clean(checkpoints: Path) -> None:
    """Remove what a crash left: staging folders, half-removed checkpoints, files. Damaged ones stay for inspection."""
    for left in checkpoints.glob(".*"):
        if left.is_file():
            left.unlink()
        elif left.name.startswith((STAGING, REMOVING)):
            shutil.rmtree(left)


def numbered(checkpoints: Path) -> list[tuple[int, Path]]:
    """The folders named checkpoint-STEP, with their steps, unordered."""
    matches = [(FOLDER.fullmatch(folder.name), folder) for folder in checkpoints.iterdir()]
    return [(int(match[1]), folder) for match, folder in matches if match]


def expected_bytes(model: torch.nn.Module, *, optimizer_states: int = 2) -> int:
    """Approximate size of a checkpoint: its weights, and so many float32 optimizer states per trained weight."""
    trained = sum(parameter.numel() * 4 for parameter in model.parameters() if parameter.requires_grad)
    return weights_bytes(model) + optimizer_states * trained


def weights_bytes(model: torch.nn.Module) -> int:
    """Bytes of the weights in a checkpoint: all of them, or those of the adapter."""
    adapters_only = hasattr(model, "peft_config")
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad or not adapters_only)


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
