"""The packed tokens as training reads them: memory-mapped blocks of equal length, with an index of their documents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.api import Block
from toolkit.data.stats import DataAccount

if TYPE_CHECKING:
    import numpy
    import torch

BLOCK_NUMBERS = "block_numbers"
"""Batch key under which block indices travel from the data loader to the guard."""


class IndexedBlock(Block):
    """A block with its index, by which the core finds its documents; the objective's collator does not see it."""

    index: int


@dataclass(frozen=True)
class DocumentStarts:
    """Where each document that has text begins."""

    rows: numpy.ndarray[Any, Any]
    """The document's row in its split, shape (documents,)."""
    offsets: numpy.ndarray[Any, Any]
    """Index of its first token, counted over all documents of the split, shape (documents,)."""
    tokens_per_block: int
    """Document tokens per block; the block's frame belongs to no document."""

    def in_blocks(self, indices: Iterable[int]) -> list[int]:
        """The rows of the documents that these blocks hold, whole or in part, in order."""
        found: set[int] = set()
        for index in indices:
            begin, end = index * self.tokens_per_block, (index + 1) * self.tokens_per_block
            first, after = self.offsets.searchsorted([begin + 1, end]) - [1, 0]
            found.update(self.rows[first:after].tolist())
        return sorted(found)


class PackedBlocks:
    """A map-style dataset of blocks; item i is an `IndexedBlock`.

    The Trainer's data loader calls `set_epoch`, so that a block's seed differs from epoch to epoch.
    """

    def __init__(
        self, tokens: numpy.ndarray[Any, Any], block_size: int, seed: int, documents: DocumentStarts | None = None
    ) -> None:
        self.tokens = tokens.reshape(-1, block_size)
        self.seed = seed
        self.epoch = 0
        self.documents = documents

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> IndexedBlock:
        digest = hashlib.blake2b(f"{self.seed} {self.epoch} {index}".encode(), digest_size=7).digest()
        return {
            "input_ids": self.tokens[index].astype("int64"),
            "seed": int.from_bytes(digest),
            "index": index,
        }

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the pass over the data."""
        self.epoch = epoch


class IndexedCollator:
    """The objective's collator, with the block indices carried past it; it runs in the data loader's workers."""

    def __init__(self, collate: Callable[[list[Block]], dict[str, torch.Tensor]]) -> None:
        self.collate = collate

    def __call__(self, blocks: list[IndexedBlock]) -> dict[str, torch.Tensor]:
        """Collate a batch."""
        import torch

        plain: list[Block] = [{"input_ids": block["input_ids"], "seed": block["seed"]} for block in blocks]
        return {**self.collate(plain), BLOCK_NUMBERS: torch.tensor([block["index"] for block in blocks])}


def open_blocks(entry: Path, split: str, account: DataAccount, seed: int) -> PackedBlocks:
    """Memory-map the blocks of a split that `packing` wrote into a cache entry.

    Raises:
        OSError, ValueError: a file is missing, or its size is not what the account says.
    """
    import numpy

    counted = account.train if split == "train" else account.validation
    assert counted is not None
    tokens = numpy.memmap(entry / f"{split}.tokens", dtype=account.token_type, mode="r")
    starts = numpy.memmap(entry / f"{split}.documents", dtype="int64", mode="r").reshape(-1, 2)
    if (tokens.size, len(starts)) != (counted.blocks * account.block_size, counted.documents):
        raise ValueError(f"{entry} has not the size that its account says")
    frame = counted.frame_tokens // counted.blocks
    documents = DocumentStarts(starts[:, 0], starts[:, 1], account.block_size - frame)
    return PackedBlocks(tokens, account.block_size, seed, documents)


def token_type(highest_id: int) -> str:
    """The smaller of uint16 and uint32 that holds every token id up to this one, by numpy's name."""
    return "uint16" if highest_id < 2**16 else "uint32"
