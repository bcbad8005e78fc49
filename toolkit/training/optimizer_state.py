"""The optimizer's state from a checkpoint that was trained with other settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OPTIMIZER_FILE = "optimizer.pt"


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

    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    peak_rates = list(scheduler.base_lrs)
    if (folder / OPTIMIZER_FILE).exists():
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
