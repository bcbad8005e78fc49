"""Short sequences first: the first steps of a run are trained on blocks that are cut into pieces.

A step has the same tokens as any other, in the same order, so data, learning rate and resume know nothing of it. Press
and others 2021, https://arxiv.org/abs/2012.15832; Li and others 2022, https://arxiv.org/abs/2108.06084.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolkit.api import Settings
from toolkit.recipe.length import steps_of
from toolkit.training.model_flops import flops_per_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ShortBlocks:
    """Which steps have their blocks cut, and into pieces of how many tokens."""

    length: int = 0
    steps: int = 0

    @classmethod
    def of(cls, training: Settings, total_steps: int) -> ShortBlocks:
        """Those that the settings ask for, in a run of so many steps; no step's, if there are none or nobody asks."""
        if training.warmup_block_size is None or not total_steps:
            return cls()
        return cls(training.warmup_block_size, steps_of(training.warmup_block_steps, total_steps))

    def __bool__(self) -> bool:
        return self.steps > 0

    def cut(self, batch: Mapping[str, Any], *, step: int) -> dict[str, Any]:
        """The batch of this step; if it is one of the first, with each tensor (blocks, block size) as (pieces, length).

        A causal model predicts the first token of no piece, as it does of no block.
        """
        if step > self.steps:
            return dict(batch)
        return {name: tensor.unflatten(1, (-1, self.length)).flatten(0, 1) for name, tensor in batch.items()}

    def flops_per_token(self, model: PreTrainedModel, block_size: int) -> Callable[[int], float]:
        """The model's FLOPs for a token of the step with a given number."""
        whole, cut = (flops_per_token(model, length) for length in (block_size, self.length))
        return lambda step: whole if step > self.steps else cut
