"""Token ids -> the block files of one split, with everything counted on the way."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from toolkit.api import Block, Objective, highest_id
from toolkit.data.encoding import Piece
from toolkit.data.packed_dataset import token_type
from toolkit.data.stats import SplitAccount
from toolkit.errors import OptionError
from toolkit.system.files import force

if TYPE_CHECKING:
    import numpy
    from transformers import PreTrainedTokenizerBase


class Packer:
    """Concatenates documents, each with its end tokens, and cuts the stream into blocks in the objective's frame."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> None:
        import numpy

        before, after = objective.block_frame(tokenizer)
        self.end = objective.document_end(tokenizer)
        self.frame = tuple(numpy.array([part], dtype="int64") for part in (before, after))
        self.frame_tokens = len(before) + len(after)
        self.room = objective.block_size - self.frame_tokens
        if self.room < 1:
            raise OptionError(
                f"the special tokens leave no room for text in a block of {objective.block_size}",
                option="block_size",
            )
        self.highest_id = max(highest_id(tokenizer), *before, *after, *self.end)
        self.documents = self.empty = self.tokens = 0
        self.rest = numpy.empty(0, dtype="int64")
        """Tokens that do not yet fill a block, shape (fewer than room,)."""
        self.starts: list[tuple[int, int]] = []
        """Row and first token index of each document that starts in the newest pieces."""
        self._begun = False

    def add(self, batch: list[tuple[Piece, list[int]]]) -> numpy.ndarray[Any, Any]:
        """Return the tokens of these pieces, end tokens included, shape (tokens,).

        Raises:
            OptionError: an id is outside the vocabulary (option "tokenizer").
        """
        parts: list[tuple[int, ...] | list[int]] = []
        self.starts = []
        for piece, ids in batch:
            if ids and not self._begun:
                self.starts.append((piece.row, self.tokens))
                self.documents, self._begun = self.documents + 1, True
            self._take(ids, parts)
            if piece.is_last:
                self._take(self.end if self._begun else (), parts)
                self.empty, self._begun = self.empty + (not self._begun), False
        return self._line(parts)

    def _take(self, ids: tuple[int, ...] | list[int], parts: list[tuple[int, ...] | list[int]]) -> None:
        parts.append(ids)
        self.tokens += len(ids)

    def _line(self, parts: list[tuple[int, ...] | list[int]]) -> numpy.ndarray[Any, Any]:
        import numpy

        try:
            line = numpy.fromiter(itertools.chain.from_iterable(parts), "int64", sum(map(len, parts)))
        except TypeError as error:
            raise OptionError(
                "the tokenizer has no id for a piece of the text, and no unk_token to stand for it",
                option="tokenizer",
            ) from error
        if line.size and not 0 <= line.min() <= line.max() <= self.highest_id:
            stranger = line[(line < 0) | (line > self.highest_id)][0]
            raise OptionError(
                f"the tokenizer returns the id {stranger:,}, but the highest of its vocabulary is {self.highest_id:,}",
                option="tokenizer",
            )
        return line

    def blocks(self, line: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
        """Return the blocks that these tokens complete, shape (blocks, block_size)."""
        import numpy

        line = numpy.concatenate([self.rest, line])
        whole = len(line) // self.room
        body, self.rest = line[: whole * self.room].reshape(whole, self.room), line[whole * self.room :]
        before, after = (part.repeat(whole, axis=0) for part in self.frame)
        return numpy.hstack([before, body, after])


class BlockWriter:
    """Writes NAME.tokens, a flat array of the blocks, and NAME.documents, each document's row and first token index."""

    def __init__(self, file: Path, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> None:
        self.packer = Packer(tokenizer, objective)
        self.token_type = token_type(self.packer.highest_id)
        self.characters = 0
        self._blocks = self._written = 0
        self._ends = _EndsLearned(tokenizer, objective)
        self._special = _SpecialTokens(tokenizer)
        self._tokens = file.with_suffix(".tokens").open("wb")
        self._starts = file.with_suffix(".documents").open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        for file in (self._tokens, self._starts):
            with file:
                if kind is None:
                    file.flush()
                    force(file.fileno())

    def write(self, batch: list[tuple[Piece, list[int]]]) -> None:
        """Pack these pieces after the earlier ones."""
        import numpy

        self.characters += sum(len(piece.text) for piece, _ in batch)
        line = self.packer.add(batch)
        self._special.count(line)
        blocks = self.packer.blocks(line)
        self._ends.count(blocks)
        self._blocks += len(blocks)
        self._written += blocks.size
        self._tokens.write(blocks.astype(self.token_type).tobytes())
        self._starts.write(numpy.array(self.packer.starts, dtype="int64").tobytes())

    def account(self, *, cut: int) -> SplitAccount:
        """Where everything went; `cut` documents were split off at an end token inside a text."""
        packer = self.packer
        frame_tokens = self._blocks * packer.frame_tokens
        tokens_in_blocks = packer.tokens - len(packer.rest)
        return SplitAccount(
            documents=packer.documents,
            empty_documents=packer.empty,
            characters=self.characters,
            tokens=packer.tokens,
            blocks=self._blocks,
            tokens_in_blocks=tokens_in_blocks,
            tokens_dropped=len(packer.rest),
            frame_tokens=frame_tokens,
            ends_learned=self._ends.total,
            padding_tokens=self._written - tokens_in_blocks - frame_tokens,
            documents_cut=cut,
            special_tokens=self._special.in_texts(closed=packer.documents, end=packer.end),
        )


class _EndsLearned:
    """Counts the document ends that are labels, by running the objective's own collator."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> None:
        self.end = objective.document_end(tokenizer)[-1:]
        self.collate = objective.collator(tokenizer)
        self.shifted = objective.task == "causal-lm"
        self.total = 0

    def count(self, packed: numpy.ndarray[Any, Any]) -> None:
        """Add the ends in these blocks; `packed` has shape (blocks, block_size)."""
        for start in range(0, len(packed) if self.end else 0, 256):
            blocks: list[Block] = [{"input_ids": row, "seed": 0} for row in packed[start : start + 256]]
            batch = self.collate(blocks)
            # A causal model shifts its labels: the one at a block's first position is never a target.
            labels = batch["labels"][:, 1:] if self.shifted else batch["labels"]
            self.total += int((labels == self.end[0]).sum())


class _SpecialTokens:
    """Counts the special tokens that the tokenizer finds in the texts; its unk token is not one of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = tokenizer.added_tokens_decoder
        named = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
        unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.sep_token_id}
        self.ids = sorted(named - unknown)
        self.tokenizer = tokenizer
        self.found: Counter[int] = Counter()

    def count(self, tokens: numpy.ndarray[Any, Any]) -> None:
        """Add the special ones among these tokens, shape (tokens,)."""
        import numpy

        self.found.update(tokens[numpy.isin(tokens, self.ids)].tolist())

    def in_texts(self, *, closed: int, end: tuple[int, ...]) -> dict[str, int]:
        """How often each occurs in the texts, not counting the ends appended to `closed` documents."""
        self.found.subtract(dict.fromkeys(end, closed))
        return {
            str(self.tokenizer.convert_ids_to_tokens(token)): times for token, times in self.found.items() if times > 0
        }
