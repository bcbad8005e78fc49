"""A tokenizer trained on the recipe's own documents."""

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
"""In characters: longer text without a space, such as DNA or base64 on one line, is cut into pieces for training. For
each merge the trainer shifts everything after it in the word, so the time would grow with the square of the word's
length."""


class ByteBPE(Tokenizer):
    """Byte-level BPE as in GPT-2, trained on the documents: no token is unknown, and decoding restores the text.

    Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; Radford et al. 2019, "Language Models are Unsupervised
    Multitask Learners".
    """

    vocab_size: int = Field(default=8000, ge=BYTES + 2 + len(FRAME))
    """Size of the vocabulary, including the 256 bytes and the special tokens; a small corpus yields fewer."""
    min_frequency: int = Field(default=2, ge=1)
    """How often a pair must occur in the documents to become a token."""

    def rehearse(self) -> Self:
        """The same with a small vocabulary, which trains in a second and keeps the embedding small."""
        return self.model_copy(update={"vocab_size": min(self.vocab_size, REHEARSAL_VOCABULARY)})

    def build(self, corpus: Iterable[str], run: RunContext) -> PreTrainedTokenizerBase:
        """Learn the merges; for masked-lm, add the tokens that frame a block and the mask token."""
        from tokenizers import Tokenizer

        special = list(dict.fromkeys(_special(run).values()))
        learned = Tokenizer.from_str(run.learned(lambda: self._learned(corpus, special).to_str()))
        if (size := learned.get_vocab_size()) < self.vocab_size:
            run.log.info("The documents yield %d tokens of the %d asked for.", size, self.vocab_size)
        return self._wrapped(learned, run)

    def skeleton(self, run: RunContext) -> PreTrainedTokenizerBase:
        """A tokenizer with the full `vocab_size`, the most that training can yield, and made-up words."""
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
            clean_up_tokenization_spaces=False,  # the cleanup is for WordPiece; here it would change the text
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
        # The finished tokenizer reads these strings as special tokens, so it should learn no merges from them.
        in_text = re.compile("|".join(map(re.escape, special)))
        parts = (part for text in itertools.chain([first], texts) for part in in_text.split(text))
        tokenizer.train_from_iterator((piece for part in parts for piece in _pieces(part)), trainer)
        return tokenizer


def _pieces(text: str) -> Iterator[str]:
    """Cut a text where it has a long stretch without a space; checked in windows, which is almost free for prose."""
    begin = 0
    for end in range(LONGEST_WORD, len(text), LONGEST_WORD):
        window = text[end - LONGEST_WORD : end]
        if (" " not in window and "\n" not in window) or window.isspace():
            yield text[begin:end]
            begin = end
    yield text[begin:]


def _special(run: RunContext) -> dict[str, str]:
    # A separate pad token: collators mask padding out of the loss, and every EOS too if the two are the same.
    return {"bos_token": END, "eos_token": END, "pad_token": PAD, **(FRAME if run.task == "masked-lm" else {})}


def _framed(tokenizer: tokenizers.Tokenizer) -> Any:
    """Frame a text as blocks are framed in training, so that the finished model sees the inputs it was trained on."""
    from tokenizers.processors import TemplateProcessing

    frame = [FRAME["cls_token"], FRAME["sep_token"]]
    return TemplateProcessing(
        single=f"{frame[0]} $A {frame[1]}",
        pair=f"{frame[0]} $A {frame[1]} $B {frame[1]}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in frame],
    )
