"""What transformers' models ask of a batch's values, answered without them.

To look at a value is to wait for the GPU, and these are looked at in every forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch.nn import Module
from transformers import PreTrainedModel, masking_utils


class ValuesUnread:
    """Keeps the forward passes of a model from reading values of their batches."""

    def __init__(self, model: Module) -> None:
        self._models: list[Any] = [module for module in model.modules() if isinstance(module, PreTrainedModel)]

    @contextlib.contextmanager
    def of(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Answer for this batch.

        Whether several documents lie in a sequence: not without position ids, which the model then counts itself.
        Whether there is padding without an attention mask, of which it would warn: a block is padded, if at all, at its
        end, where no other token sees it and no label counts it.
        """
        original = masking_utils.find_packed_sequence_indices
        if "position_ids" not in batch:
            masking_utils.find_packed_sequence_indices = _none
        for model in self._models:
            model.warn_if_padding_and_no_attention_mask = _none
        try:
            yield
        finally:
            masking_utils.find_packed_sequence_indices = original
            for model in self._models:
                del model.warn_if_padding_and_no_attention_mask


def _none(*_: Any, **__: Any) -> None:
    return None
