"""Token ids -> the block files of one split, with everything counted on the way."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from toolkit.api import Block, Objective, highest_id
from toolkit.data.best_fit import BestFit, PaddedBlocks
from toolkit.data.packed_dataset import without_padding
from toolkit.data.shards import Shard, token_type
from toolkit.data.stats import SplitAccount
from toolkit.errors import OptionError
from toolkit.system.files import force

if TYPE_CHECKING:
    import numpy
    from transformers import PreTrainedTokenizerBase

ELEMENTS_OF_ONE_THREAD = 2**15 - 1
"""torch divides longer tensors among threads, which wait for the processors while other processes tokenize on them."""
PACKER_STATE = ("documents", "empty", "tokens", "documents_in_several_blocks", "_begun", "_began")


class Packer:
    """Concatenates documents, each with its end tokens, and cuts the stream into blocks in the objective's frame."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> None:
        import numpy

        before, after = objective.block_frame(tokenizer)
        self.end = objective.document_end(tokenizer)
        self.frame_tokens = len(before) + len(after)
        self.room = objective.block_size - self.frame_tokens
        if self.room < 1:
            raise OptionError(
                f"the special tokens leave no room for text in a block of {objective.block_size}",
                option="block_size",
            )
        self.highest_id = max(highest_id(tokenizer), *before, *after, *self.end)
        self.token_type = token_type(self.highest_id)
        self.frame = tuple(numpy.array([part], dtype=self.token_type) for part in (before, after))
        self.documents = self.empty = self.tokens = self.documents_in_several_blocks = 0
        self.rest = numpy.empty(0, dtype=self.token_type)
        """Tokens that do not yet fill a block, shape (fewer than room,)."""
        self.starts = numpy.empty((0, 2), dtype="int64")
        """Row and first token index of each document that starts in the newest texts, shape (documents, 2)."""
        self._begun = False
        """Whether the newest document has not ended, and has a token."""
        self._began = 0
        """Index of the first token of the newest document."""

    def add(self, shard: Shard) -> numpy.ndarray[Any, Any]:
        """Return the tokens of these texts, which follow the earlier ones, with end tokens, shape (tokens,)."""
        import numpy

        # Of each document, or of its part in this shard: its first and last text, and where its tokens end.
        first = numpy.flatnonzero(numpy.diff(shard.rows, prepend=-1))
        last = numpy.append(first[1:], len(shard.rows)) - 1
        stop = numpy.cumsum(shard.lengths)[last]
        begins = numpy.logical_or.reduceat(shard.lengths > 0, first)
        begun = begins.copy()
        if self._begun:
            begins[0], begun[0] = False, True
        ends = shard.is_last[last]
        closed = begun & ends
        offsets = numpy.append(0, stop[:-1]) + len(self.end) * (numpy.cumsum(closed) - closed)
        began = self.tokens + offsets
        last_tokens = began + numpy.diff(stop, prepend=0) + len(self.end) - 1
        self.starts = numpy.stack([shard.rows[first], began], axis=1)[begins]
        began[0] = self._began if self._begun else began[0]
        self.documents_in_several_blocks += int((closed & (began // self.room != last_tokens // self.room)).sum())
        self._began = int(began[-1])
        self.documents += int(begins.sum())
        self.empty += int((ends & ~begun).sum())
        self._begun = bool(begun[-1] and not ends[-1])
        line, places = shard.ids.astype(self.token_type, copy=False), stop[closed].repeat(len(self.end))
        if len(places):
            line = numpy.insert(line, places, numpy.tile(self.end, int(closed.sum())))
        self.tokens += len(line)
        return line

    def state_dict(self) -> dict[str, Any]:
        """All that later documents depend on, as plain data."""
        state = {name: getattr(self, name) for name in PACKER_STATE}
        return state | {"rest": self.rest.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        import numpy

        for name in PACKER_STATE:
            setattr(self, name, state[name])
        self.rest = numpy.array(state["rest"], dtype=self.token_type)

    def blocks(self, line: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
        """Return the blocks that these tokens complete, shape (blocks, block_size)."""
        import numpy

        line = numpy.concatenate([self.rest, line])
        whole = len(line) // self.room
        body, self.rest = line[: whole * self.room].reshape(whole, self.room), line[whole * self.room :].copy()
        if not self.frame_tokens:
            return body
        before, after = (part.repeat(whole, axis=0) for part in self.frame)
        return numpy.hstack([before, body, after])


class BlockWriter:
    """Writes NAME.tokens, a flat array of the blocks, and NAME.documents, each document's row and first token index.

    With best-fit packing a document has an entry in NAME.documents for each of its parts, and NAME.filled holds the
    number of tokens of each block before its padding.
    """

    def __init__(self, file: Path, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> None:
        self.packer = Packer(tokenizer, objective)
        self.best_fit = BestFit(tokenizer, objective) if objective.packing == "best-fit" else None
        self.characters = 0
        self._blocks = self._written = 0
        self._ends = EndsLearned(tokenizer, objective)
        self._special = SpecialTokens(tokenizer)
        self._tokens = _DigestedFile(file.with_suffix(".tokens"))
        self._starts = _DigestedFile(file.with_suffix(".documents"))
        self._files = [self._tokens, self._starts]
        if self.best_fit:
            self._filled = _DigestedFile(file.with_suffix(".filled"))
            self._files.append(self._filled)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        with contextlib.ExitStack() as stack:  # all are closed, even if a full disk lets one fail
            for file in self._files:
                stack.callback(file.close, durably=kind is None)

    def write(self, shard: Shard) -> None:
        """Pack these texts after the earlier ones."""
        self.characters += int(shard.characters)
        self._special.count(shard.ids)
        before = self.packer.tokens
        line = self.packer.add(shard)
        if self.best_fit:
            self._write_padded(self.best_fit.add(line, (self.packer.starts - [0, before]).tolist()))
        else:
            blocks = self.packer.blocks(line)
            self._ends.count(blocks)
            self._write(blocks, self.packer.starts)

    def finish(self) -> None:
        """Write the blocks that waited for more documents."""
        if self.best_fit:
            self._write_padded(self.best_fit.rest())

    def _write(self, blocks: numpy.ndarray[Any, Any], starts: numpy.ndarray[Any, Any]) -> None:
        self._blocks += len(blocks)
        self._written += blocks.size
        self._tokens.write(blocks)
        self._starts.write(starts)

    def _write_padded(self, padded: PaddedBlocks) -> None:
        self._ends.count(padded.tokens, padded.filled)
        self._write(padded.tokens.astype(self.packer.token_type), padded.starts)
        self._filled.write(padded.filled)

    @property
    def digests(self) -> dict[str, str]:
        """XXH3 of each file's content, by its name."""
        return {file.name: file.digest.hexdigest() for file in self._files}

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
            special_tokens=self._special.by_name(),
            documents_in_several_blocks=(self.best_fit or packer).documents_in_several_blocks,
        )


class _DigestedFile:
    """A file that is written from its beginning to its end, with the digest of what is in it."""

    def __init__(self, path: Path) -> None:
        import xxhash

        self.name, self.digest = path.name, xxhash.xxh3_128()
        self._file = path.open("wb")

    def write(self, array: numpy.ndarray[Any, Any]) -> None:
        content = array.tobytes()
        self.digest.update(content)
        self._file.write(content)

    def close(self, *, durably: bool) -> None:
        with self._file:
            if durably:
                self._file.flush()
                force(self._file.fileno())


class EndsLearned:
    """Counts the document ends that are labels, by running the objective's own collator."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> None:
        self.end = objective.document_end(tokenizer)[-1:]
        self.collate = objective.collator(tokenizer)
        self.task = objective.task
        self.total = 0

    def count(self, packed: numpy.ndarray[Any, Any], filled: numpy.ndarray[Any, Any] | None = None) -> None:
        """Add the ends in these blocks, shape (blocks, block_size), of which so many tokens are `filled`, (blocks,)."""
        at_once = max(1, ELEMENTS_OF_ONE_THREAD // packed.shape[1])
        for start in range(0, len(packed) if self.end else 0, at_once):
            rows = packed[start : start + at_once].astype("int64")
            blocks: list[Block] = [{"input_ids": row, "seed": 0} for row in rows]
            batch = self.collate(blocks)
            if filled is not None:
                batch = without_padding(batch, filled[start : start + at_once], self.task)
            # A causal model shifts its labels: the one at a block's first position is never a target.
            labels = batch["labels"][:, 1:] if self.task == "causal-lm" else batch["labels"]
            self.total += int((labels == self.end[0]).sum())


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of the special tokens, without the unk token; shape (tokens,), ascending."""
    added = tokenizer.added_tokens_decoder
    named = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.sep_token_id}
    return sorted(named - unknown)


class SpecialTokens:
    """Counts the special tokens that the tokenizer finds in the texts; its unk token is not one of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.ids = special_ids(tokenizer)
        self.tokenizer = tokenizer
        self.found: Counter[int] = Counter()

    def count(self, tokens: numpy.ndarray[Any, Any]) -> None:
        """Add the special ones among these tokens of texts, shape (tokens,)."""
        import numpy

        self.found.update(tokens[numpy.isin(tokens, self.ids)].tolist())

    def by_name(self) -> dict[str, int]:
        """How often each occurs."""
        return {str(self.tokenizer.convert_ids_to_tokens(token)): times for token, times in self.found.items()}
