"""A tokenizer that is learned from the recipe's own documents."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

from toolkit.api import OptionError, RunContext, Tokenizer

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

END = "<|endoftext|>"
PAD = "<|pad|>"
FRAME = {"cls_token": "<|cls|>", "sep_token": "<|sep|>", "mask_token": "<|mask|>"}
BYTES = 256
REHEARSAL_VOCABULARY = 1000
LONGEST_WORD = 1000
"""Characters: text that goes on for so long without a space, such as DNA or base64 on one line, is learned from in
pieces. For each merge the trainer moves all that follows it in its word, so the time would grow with the square of a
word's length."""


class ByteBPE(Tokenizer):
    """Byte-pair encoding as GPT-2 has it, learned from the documents: nothing is unknown, and text comes back whole.

    Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; Radford et al. 2019, "Language Models are Unsupervised
    Multitask Learners".
    """

    vocab_size: int = Field(default=8000, ge=BYTES + 2 + len(FRAME))
    """Tokens to learn, the 256 bytes and the special tokens included; a small corpus yields fewer."""
    min_frequency: int = Field(default=2, ge=1)
    """A pair becomes a token if it occurs so often in the documents."""

    def rehearse(self) -> Self:
        """A small vocabulary is trained in a second, and makes a small embedding."""
        return self.model_copy(update={"vocab_size": min(self.vocab_size, REHEARSAL_VOCABULARY)})

    def build(self, corpus: Iterable[str], run: RunContext) -> PreTrainedTokenizerBase:
        """Learn the merges; with masked-lm, add the tokens that frame a block and the mask."""
        from tokenizers import Tokenizer

        special = list(dict.fromkeys(_special(run).values()))
        learned = Tokenizer.from_str(run.learned(lambda: self._learned(corpus, special).to_str()))
        if (size := learned.get_vocab_size()) < self.vocab_size:
            run.log.info("The documents yield %d tokens of the %d asked for.", size, self.vocab_size)
        return self._wrapped(learned, run)

    def skeleton(self, run: RunContext) -> PreTrainedTokenizerBase:
        """As many tokens as asked for, the most that there will be; their words are made up."""
        from tokenizers import Tokenizer, models

        special = list(dict.fromkeys(_special(run).values()))
        words = [*special, *(f"token {number}" for number in range(len(special), self.vocab_size))]
        return self._wrapped(Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)})), run)

    def _wrapped(self, learned: tokenizers.Tokenizer, run: RunContext) -> PreTrainedTokenizerBase:
        from transformers import PreTrainedTokenizerFast

        if run.task == "masked-lm":
            learned.post_processor = _framed(learned)
        # Typed as Any: the constructor of transformers has no annotations.
        wrap: Any = PreTrainedTokenizerFast
        tokenizer: PreTrainedTokenizerBase = wrap(
            tokenizer_object=learned,
            model_max_length=run.block_size,
            clean_up_tokenization_spaces=False,  # cleaning is for word pieces; here it would change the text
            **_special(run),
        )
        return tokenizer

    def _learned(self, corpus: Iterable[str], special: list[str]) -> tokenizers.Tokenizer:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        texts = iter(corpus)
        if (first := next(texts, None)) is None:
            raise OptionError("there is no text to learn a tokenizer from: the dataset has no documents")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_frequency,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        # The finished tokenizer reads these words as special tokens, so their letters are nothing to learn from.
        in_text = re.compile("|".join(map(re.escape, special)))
        parts = (part for text in itertools.chain([first], texts) for part in in_text.split(text))
        tokenizer.train_from_iterator((piece for part in parts for piece in _pieces(part)), trainer)
        return tokenizer


def _pieces(text: str) -> Iterator[str]:
    """Cut a text where it goes on without a space; looked at in windows, which costs next to nothing for prose."""
    begin = 0
    for end in range(LONGEST_WORD, len(text), LONGEST_WORD):
        window = text[end - LONGEST_WORD : end]
        if (" " not in window and "\n" not in window) or window.isspace():
            yield text[begin:end]
            begin = end
    yield text[begin:]


def _special(run: RunContext) -> dict[str, str]:
    # A pad token of its own: collators leave pad tokens out of the loss, and with them every end if the two are one.
    return {"bos_token": END, "eos_token": END, "pad_token": PAD, **(FRAME if run.task == "masked-lm" else {})}


def _framed(tokenizer: tokenizers.Tokenizer) -> Any:
    """Frame a text as blocks are framed in training, so that the finished model is asked what it has learned."""
    from tokenizers.processors import TemplateProcessing

    frame = [FRAME["cls_token"], FRAME["sep_token"]]
    return TemplateProcessing(
        single=f"{frame[0]} $A {frame[1]}",
        pair=f"{frame[0]} $A {frame[1]} $B {frame[1]}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in frame],
    )
