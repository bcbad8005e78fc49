"""Masked language modeling, as in BERT."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from toolkit.api import Block, Objective, OptionError, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class MaskedLM(Objective):
    """Mask some tokens and predict them: of those chosen, 80 % become the mask token, 10 % a random one, 10 % stay.

    Blocks are packed full: CLS, documents that each end in SEP, SEP. The choice differs in every epoch (RoBERTa's
    dynamic masking) and is drawn from the block's own seed. Devlin et al. 2018, https://arxiv.org/abs/1810.04805;
    Liu et al. 2019, https://arxiv.org/abs/1907.11692.
    """

    task: ClassVar[Task] = "masked-lm"

    mlm_probability: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that are chosen for prediction."""

    def document_end(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """SEP, or EOS for tokenizers that have no SEP."""
        end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        if end is None:
            raise OptionError("the tokenizer has neither sep_token nor eos_token, so documents would run together")
        return (end,)

    def block_frame(self, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """CLS before and SEP after, where the tokenizer has them."""
        before = () if tokenizer.cls_token_id is None else (tokenizer.cls_token_id,)
        return before, () if tokenizer.sep_token_id is None else (tokenizer.sep_token_id,)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Block]], dict[str, torch.Tensor]]:
        """Mask tokens block by block; labels are -100 wherever nothing is to be predicted."""
        if tokenizer.mask_token_id is None:
            raise OptionError("masked-lm needs a tokenizer with a mask_token; BERT's have one, GPT-2's does not")
        special, vocabulary = tokenizer.all_special_ids, sorted({*tokenizer.get_vocab().values()})

        def collate(blocks: list[Block]) -> dict[str, torch.Tensor]:
            import torch

            special_ids, every_id = torch.tensor(special), torch.tensor(vocabulary)
            inputs, labels = [], []
            for block in blocks:
                draw = torch.Generator().manual_seed(block["seed"])
                tokens = torch.from_numpy(block["input_ids"]).clone()
                chosen = torch.rand(tokens.shape, generator=draw) < self.mlm_probability
                chosen &= ~torch.isin(tokens, special_ids)
                labels.append(torch.where(chosen, tokens, -100))
                kind = torch.rand(tokens.shape, generator=draw)
                others = every_id[torch.randint(len(every_id), tokens.shape, generator=draw)]
                tokens[chosen & (kind < 0.8)] = tokenizer.mask_token_id
                replaced = chosen & (kind >= 0.8) & (kind < 0.9)
                tokens[replaced] = others[replaced]
                inputs.append(tokens)
            return {"input_ids": torch.stack(inputs), "labels": torch.stack(labels)}

        return collate
