"""Autocast without two copies: of the outputs in float32, and of all weights in 16 bits.

accelerate converts what a model returns. For a language model that is its logits, the largest tensor of a step: three
times their size in bfloat16 is written and kept, and the loss, which computes in float32 anyway, reads it again.

autocast's cache holds the 16-bit copy of every weight until the forward pass ends, for weights that a pass uses more
than once; those of a transformer are used once. With gradient checkpointing nothing else would hold the copies, and
with sharding they are the whole model: 13 GB for 7 billion parameters.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from accelerate import AutocastKwargs
from accelerate.utils.operations import ConvertOutputsToFp32
from transformers import Trainer


class OutputPrecisionTrainer(Trainer):
    """A Trainer whose model returns outputs in the precision it computes in, and keeps no cast weights."""

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, and follow what it does to a model."""
        super().create_accelerator_and_postprocess()
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        prepare = self.accelerator.prepare_model

        def prepared(model: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
            whole: torch.nn.Module = prepare(model, *args, **kwargs)
            _without_conversion(model)
            return whole

        self.accelerator.prepare_model = prepared


def _without_conversion(model: torch.nn.Module) -> None:
    """Take accelerate's conversion away from the model's forward, and leave its autocast."""
    forward: Any = model.forward
    converting = getattr(forward, "__wrapped__", None)
    if isinstance(converting, ConvertOutputsToFp32):
        plain: Any = converting.model_forward
        model.forward = MethodType(plain, model) if isinstance(forward, MethodType) else plain
