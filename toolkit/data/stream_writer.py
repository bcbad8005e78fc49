"""Appends the blocks of a stream to a file that is read while it grows."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from toolkit.api import Objective
from toolkit.data.block_writer import EndsLearned, Packer, SpecialTokens
from toolkit.data.encoding import Batch, Encoder
from toolkit.data.read_back import BLOCKS_READ_BACK, CHARACTERS_PER_TOKEN
from toolkit.data.stream_state import StreamState
from toolkit.errors import UnavailableError
from toolkit.system.files import force, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_FILE, STARTS_FILE = "train.tokens", "train.documents"
BEGINNING_FILE = "train.beginning.json"
"""The first texts, with which the tokenizer is checked."""
BYTES_PER_START = 16


class StreamWriter:
    """Appends blocks to the files of a stream, behind what its state says."""

    def __init__(
        self,
        entry: Path,
        state: StreamState,
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective,
        *,
        blocks: int,
        window: int,
    ) -> None:
        """`blocks` are those of the whole stream, `window` those that are shuffled with one another."""
        self.state = state
        self.window = window
        self.packer = Packer(tokenizer, objective)
        if state.packer:
            self.packer.load_state_dict(state.packer)
        self._ends, self._special = EndsLearned(tokenizer, objective), SpecialTokens(tokenizer)
        self._ends.total = state.ends_learned
        names = {str(tokenizer.convert_ids_to_tokens(token)): token for token in self._special.ids}
        self._special.found.update({names[name]: times for name, times in state.special_tokens.items()})
        self._entry = entry
        self._block_size = objective.block_size
        self._bytes_each = objective.block_size * (2 if self.packer.token_type == "uint16" else 4)
        self._tokens = _appended(entry / TOKENS_FILE, state.blocks * self._bytes_each)
        self._starts = _appended(entry / STARTS_FILE, self.packer.documents * BYTES_PER_START)
        # Readers map all of it, and read only what the state says is there.
        if (entry / TOKENS_FILE).stat().st_size < blocks * self._bytes_each:
            os.truncate(entry / TOKENS_FILE, blocks * self._bytes_each)

    def write(self, batch: Batch, encode: Encoder) -> None:
        """Pack these texts, write their blocks, and force them to the disk."""
        shard = batch.shard(encode, self.packer.highest_id)
        if not self.packer.documents and not self.state.blocks:
            self._keep_beginning(batch)
        self._special.count(shard.ids)
        blocks = self.packer.blocks(self.packer.add(shard))
        self._ends.count(blocks)
        self._tokens.write(blocks.tobytes())
        self._starts.write(self.packer.starts.tobytes())
        for file in (self._tokens, self._starts):
            file.flush()
            force(file.fileno())
        state = self.state
        state.blocks += len(blocks)
        state.characters += batch.characters
        state.ends_learned, state.special_tokens = self._ends.total, self._special.by_name()
        state.packer = self.packer.state_dict()
        state.window_blocks = self.window
        size, whole = self.window * self._bytes_each, state.blocks // self.window
        state.digests += digests_of(self._entry / TOKENS_FILE, size, range(len(state.digests), whole))
        rest = state.blocks * self._bytes_each - whole * size
        (state.last_digest,) = digests_of(self._entry / TOKENS_FILE, size, range(whole, whole + 1), last=rest)

    def close(self) -> None:
        """Close the files."""
        self._tokens.close()
        self._starts.close()

    def _keep_beginning(self, batch: Batch) -> None:
        first, most = Batch(batch.begin), BLOCKS_READ_BACK * self._block_size * CHARACTERS_PER_TOKEN
        for text, row, is_last in zip(batch.texts, batch.rows, batch.is_last, strict=True):
            first.add(text, row, first.end[1], is_last=is_last)
            if first.characters >= most:
                break
        write_json(self._entry / BEGINNING_FILE, asdict(first))


def _appended(file: Path, size: int) -> BinaryIO:
    """The file, open to write behind its first bytes."""
    file.touch()
    if file.stat().st_size < size:
        raise UnavailableError(f"{file} is shorter than what was written; remove {file.parent} to prepare it again")
    opened = file.open("r+b")
    opened.seek(size)
    return opened


def are_intact(entry: Path, state: StreamState, bytes_each: int) -> bool:
    """Whether the blocks, each of so many bytes, are still what was written."""
    size, whole = state.window_blocks * bytes_each, len(state.digests)
    rest = state.blocks * bytes_each - whole * size
    found = digests_of(entry / TOKENS_FILE, size, range(whole + 1), last=rest)
    return found == [*state.digests, state.last_digest]


def digests_of(file: Path, size: int, windows: range, *, last: int | None = None) -> list[str]:
    """XXH3 of each of these pieces of a file, `size` bytes long; of the last one, so many of its bytes."""
    import xxhash

    found = []
    with file.open("rb") as content:
        for number in windows:
            content.seek(number * size)
            read = content.read(size if last is None or number != windows[-1] else last)
            found.append(xxhash.xxh3_128_hexdigest(read))
    return found
