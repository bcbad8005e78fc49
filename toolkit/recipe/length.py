"""How many steps a run has: `max_steps`, or as many as `max_tokens` or `num_train_epochs` amount to."""

from __future__ import annotations

import math
from typing import overload

from toolkit.api import Settings


@overload
def total_steps(training: Settings, *, block_size: int, blocks: int) -> int: ...
@overload
def total_steps(training: Settings, *, block_size: int, blocks: int | None) -> int | None: ...
def total_steps(training: Settings, *, block_size: int, blocks: int | None) -> int | None:
    """Optimizer steps in all.

    Args:
        training: the recipe's settings.
        block_size: tokens per sequence.
        blocks: sequences in an epoch, those of all sources together; None if they have not been counted.

    Returns:
        None if the length depends on the number of blocks, and that is unknown.
    """
    if training.max_steps is not None:
        return training.max_steps
    if training.max_tokens is not None:
        return math.ceil(training.max_tokens / (training.global_batch_size * block_size))
    return None if blocks is None else math.ceil(training.num_train_epochs * steps_per_epoch(training, blocks))


def steps_of(wanted: float, total: int) -> int:
    """A number of steps, or a share of all of them below 1, as the Trainer counts its warm-up."""
    return int(wanted) if wanted >= 1 else math.ceil(wanted * total)


def steps_per_epoch(training: Settings, blocks: int) -> int:
    """Optimizer steps for one pass over the training data."""
    return math.ceil(blocks / training.global_batch_size)
