"""The optimizer's state in a checkpoint: whole, or in shards, which any number of processes can read.

Whole, it is the Trainer's `optimizer.pt`. In shards it is a folder in the format of `torch.distributed.checkpoint`,
into which each process writes what it holds; what is not sharded, step counts and settings, is in a file beside them.
"""

from __future__ import annotations

import io
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.training.sharding import is_sharded, sharded_like

if TYPE_CHECKING:
    import torch
    from torch.distributed.checkpoint.metadata import Metadata

OPTIMIZER_FILE = "optimizer.pt"
SHARDS_FOLDER = "optimizer"
"""Folder in a checkpoint with the shards ..."""
UNSHARDED_FILE = "unsharded.pt"
"""... and the file in it with all that is not a sharded tensor."""
METADATA_FILE = ".metadata"
"""torch's list of what is in which file."""
NAMES_IN_METADATA = {
    *(f"torch.distributed.checkpoint.metadata.{name}" for name in
      ("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
       "_MEM_FORMAT_ENCODING")),
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.serialization._get_layout",
    "torch.Size",
    *(f"{module}.{system}Path" for module in ("pathlib", "pathlib._local") for system in ("Posix", "Windows")),
}  # fmt: skip
"""What that list consists of, apart from the names of dtypes."""


def write_unsharded(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write what each process has whole: one of them does it, and makes the folder for the shards of all."""
    import torch

    state_dict = optimizer.state_dict()
    rest = {
        number: {name: value for name, value in of_parameter.items() if not is_sharded(value)}
        for number, of_parameter in state_dict["state"].items()
    }
    (folder / SHARDS_FOLDER).mkdir(exist_ok=True)
    torch.save({**state_dict, "state": rest}, folder / SHARDS_FOLDER / UNSHARDED_FILE)


def write_shards(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write this process's shards; all processes have to call it.

    Raises:
        OSError: the disk of one of the processes refuses; in all of them.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    shards = {
        f"{number}.{name}": value
        for number, of_parameter in optimizer.state_dict()["state"].items()
        for name, value in of_parameter.items()
        if is_sharded(value)
    }
    try:
        save(shards, storage_writer=FileSystemWriter(folder / SHARDS_FOLDER))
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, Exception):
                raise failure from None
        raise


def own_files(folder: Path, rank: int) -> list[Path]:
    """The files that a process of this rank has written with `write_shards`."""
    files = list((folder / SHARDS_FOLDER).glob(f"__{rank}_*"))
    return [*files, *(folder / SHARDS_FOLDER / name for name in (METADATA_FILE, UNSHARDED_FILE) if rank == 0)]


def holds_shards(folder: Path) -> bool:
    """Whether the optimizer's state in this checkpoint is sharded."""
    return (folder / SHARDS_FOLDER / METADATA_FILE).is_file()


def has_state(folder: Path) -> bool:
    """Whether there is an optimizer's state in this checkpoint."""
    return (folder / OPTIMIZER_FILE).exists() or holds_shards(folder)


def remove_state(folder: Path) -> None:
    """Remove the optimizer's state from a checkpoint."""
    (folder / OPTIMIZER_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / SHARDS_FOLDER, ignore_errors=True)


def read_state(folder: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state to load into this optimizer: in shards as its parameters are, or whole.

    Each process reads by itself, without communication.

    Raises:
        UnpicklingError: a file holds something else than state.
    """
    import torch

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state_dict: dict[str, Any]
    if not holds_shards(folder):
        state_dict = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", mmap=True, weights_only=True)
    else:
        state_dict = torch.load(folder / SHARDS_FOLDER / UNSHARDED_FILE, map_location="cpu", weights_only=True)
        for key, value in _read_shards(folder / SHARDS_FOLDER, parameters).items():
            number, _, name = key.partition(".")
            state_dict["state"][int(number)][name] = value
    for number, of_parameter in state_dict["state"].items():
        parameter = parameters[number]
        for name, value in of_parameter.items():
            if is_sharded(parameter) and not is_sharded(value) and _is_like(value, parameter):
                of_parameter[name] = sharded_like(value, parameter)
    return state_dict


def _read_shards(folder: Path, parameters: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    metadata = _checked_metadata(folder)
    wanted: dict[str, Any] = {}
    for key, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        parameter = parameters[int(key.partition(".")[0])]
        if is_sharded(parameter) and parameter.shape == entry.size:
            wanted[key] = torch.empty_like(parameter, dtype=entry.properties.dtype, requires_grad=False)
        else:
            wanted[key] = torch.empty(entry.size, dtype=entry.properties.dtype)
    if wanted:
        with warnings.catch_warnings():  # torch warns of what it is asked for
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            load(wanted, storage_reader=FileSystemReader(folder), no_dist=True)
    return wanted


class _MetadataUnpickler(pickle.Unpickler):
    """Reads torch's metadata and nothing else; torch itself would run what code is pickled there (2.13)."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or f"{module}.{name}" in NAMES_IN_METADATA:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{METADATA_FILE} names {module}.{name}")


def _checked_metadata(folder: Path) -> Metadata:
    metadata: Metadata = _MetadataUnpickler(io.BytesIO((folder / METADATA_FILE).read_bytes())).load()
    return metadata


def _is_like(value: Any, parameter: torch.Tensor) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape == parameter.shape


def load_with_new_settings(
    optimizer: torch.optim.Optimizer, scheduler: Any, folder: Path, *, load: Callable[[str], None]
) -> None:
    """Load both states from another run's checkpoint, but keep the recipe's learning rates, weight decay and betas.

    Args:
        optimizer: as the recipe builds it.
        scheduler: its `LambdaLR`.
        folder: the checkpoint.
        load: the Trainer's own method that loads both from a folder.
    """
    import torch
    from transformers.trainer import SCHEDULER_NAME

    settings_of_groups = {*optimizer.defaults, "initial_lr"}  # what else is in a group is state: a count of steps, say
    groups = [{k: v for k, v in group.items() if k in settings_of_groups} for group in optimizer.param_groups]
    peak_rates = list(scheduler.base_lrs)
    if has_state(folder):
        load(str(folder))
    else:  # the recipe has another optimizer, whose state starts empty, and which may have fewer parameter groups
        saved = torch.load(folder / SCHEDULER_NAME, weights_only=True)
        scheduler.load_state_dict({**saved, "lr_lambdas": []})
    scheduler.base_lrs = peak_rates
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        group.update(settings)
    for group, peak, course in zip(optimizer.param_groups, peak_rates, scheduler.lr_lambdas, strict=True):
        group["lr"] = peak * course(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
