"""The device and the software of a run: checked before it begins, and recorded in environment.json."""

from __future__ import annotations

import logging
import platform
from importlib import metadata
from typing import Any

from toolkit import __version__
from toolkit.errors import UnavailableError
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.system import distributed

PACKAGES_IN_THE_RECORD = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "tokenizers",
    "safetensors",
    "numpy",
)
"""The packages whose versions can change the numbers."""


def environment(resolved: ResolvedRecipe) -> dict[str, Any]:
    """Versions and device, for environment.json. No environment variables: they hold secrets."""
    import torch

    device = resolved.device
    plugins = {part.distribution for part in resolved.recipe.components}
    return {
        "toolkit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: metadata.version(package) for package in PACKAGES_IN_THE_RECORD},
        "plugins": sorted(plugins),
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "device": {
            "kind": device.kind,
            "name": device.name,
            "memory_bytes": device.memory_bytes,
            "count": device.count,
        },
    }


def check_device(resolved: ResolvedRecipe) -> None:
    """Check that torch can use the device that was detected without it.

    Raises:
        UnavailableError: there is a GPU that torch cannot use, or fewer GPUs here than processes.
    """
    import torch

    if distributed.is_main_process() and distributed.world_size() == 1 and resolved.device.count > 1:
        logging.getLogger("toolkit").info(
            "using one of %s GPUs; to use all: toolkit recipe run NAME --processes auto",
            resolved.device.count,
        )
    if resolved.device.kind == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(
            f"torch {torch.__version__} cannot use the {resolved.device.name} of this machine; install a torch that "
            f"fits its driver, or set CUDA_VISIBLE_DEVICES= (empty) to train on the CPU"
        )
    if resolved.device.kind == "cuda" and distributed.local_rank() >= torch.cuda.device_count():
        raise UnavailableError(
            f"LOCAL_RANK is set to {distributed.local_rank()}, but this machine has {torch.cuda.device_count()} GPUs; "
            f"start one process per GPU"
        )
