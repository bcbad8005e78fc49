"""The mean of the weights of a run's last checkpoints.

At a learning rate that is not decayed, the mean has most of what a decay would bring, at the price of an export; after
a decay to zero it brings nothing: docs/learning-sooner.md. Izmailov and others 2018,
https://arxiv.org/abs/1803.05407; of the last checkpoints in pre-training, Kaddour 2022,
https://arxiv.org/abs/2209.14981.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import UsageError
from toolkit.storage import checkpoint
from toolkit.storage.checkpoint import Checkpoint
from toolkit.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def last_checkpoints(run: RunDirectory, last: Checkpoint, number: int) -> list[Checkpoint]:
    """The newest so many intact checkpoints up to this one, oldest first.

    Raises:
        UsageError: there are fewer, or they hold adapters.
    """
    steps = sorted((step for step, _ in checkpoint.numbered(run.checkpoints) if step < last.step), reverse=True)
    found = [last]
    for step in steps:
        folder = run.checkpoints / f"checkpoint-{step}"
        if len(found) < number and checkpoint.fault(folder, run_id=run.id) is None:
            found.insert(0, Checkpoint(folder, step))
    if len(found) < number:
        there = ", ".join(f"{one.step:,}" for one in found)
        raise UsageError(
            f"an average of {number} checkpoints needs as many, and up to step {last.step:,} {run.name} has "
            f"{len(found)} that are intact ({there}); a run keeps more with training.keep_every, or with "
            f"save_steps and save_total_limit"
        )
    if (last.folder / "adapter_config.json").exists():
        raise UsageError(
            f"{run.name} trains an adapter, and the mean of LoRA's factors is not the mean of their products; export "
            f"one checkpoint, without --average"
        )
    return found


def mean_of(folders: Sequence[Path], load: Callable[[Path], PreTrainedModel]) -> PreTrainedModel:
    """Load the models of these folders one after the other; the last one, with the mean of their parameters.

    The mean is computed in float32, whatever the parameters' dtype. Buffers are the last model's.
    """
    import torch

    sums: dict[str, torch.Tensor] = {}
    for folder in folders:
        model = load(folder)
        for name, parameter in model.named_parameters():
            value = parameter.detach().float()
            sums[name] = sums[name].add_(value) if name in sums else value.clone()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(sums[name] / len(folders))
    return model
