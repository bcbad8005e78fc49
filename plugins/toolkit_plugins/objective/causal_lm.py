"""Causal language modeling: predict the next token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from toolkit.api import Block, Objective, OptionError, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

USUAL_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")
"""Common names of end-of-text tokens."""


class CausalLM(Objective):
    """Predict each token from those before it, on blocks packed full of documents that each end in a learned EOS."""

    task: ClassVar[Task] = "causal-lm"

    document_mask: bool = False
    """Keep each document from attending to those before it in its block; positions restart at each document."""

    def document_end(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """The tokenizer's EOS."""
        if tokenizer.eos_token_id is None:
            raise OptionError(
                "the tokenizer has no end token, so the model could not learn where documents end; name one of its "
                f"tokens, or a new one, with the tokenizer's option eos_token{_likely_end(tokenizer)}"
            )
        return (tokenizer.eos_token_id,)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Block]], dict[str, torch.Tensor]]:
        """Labels are the inputs (the model shifts them); with `document_mask`, positions restart at each document."""
        (end,) = self.document_end(tokenizer)

        def collate(blocks: list[Block]) -> dict[str, torch.Tensor]:
            import numpy
            import torch

            input_ids = torch.from_numpy(numpy.stack([block["input_ids"] for block in blocks]))
            batch = {"input_ids": input_ids, "labels": input_ids.clone()}
            if self.document_mask:
                # No attention_mask beside the positions: transformers would go by it, and documents would leak.
                batch["position_ids"] = positions_within_documents(input_ids, end)
            return batch

        return collate


def _likely_end(tokenizer: PreTrainedTokenizerBase) -> str:
    known = tokenizer.get_vocab()
    return next((f": {end!r}, say, which it has" for end in USUAL_ENDS if end in known), ": '<|endoftext|>', say")


def positions_within_documents(input_ids: torch.Tensor, end: int) -> torch.Tensor:
    """Position of each token within its document, shape (batch, block); a block's first token is at 0."""
    import torch

    index = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    starts = torch.zeros_like(input_ids)
    starts[:, 1:] = torch.where(input_ids[:, :-1] == end, index[:, 1:], 0)
    return index - starts.cummax(dim=1).values
