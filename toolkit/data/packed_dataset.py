"""The packed tokens as training reads them: memory-mapped blocks of equal length, with an index of their documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.api import Block, Objective, Task
from toolkit.data.stats import DataAccount

if TYPE_CHECKING:
    import numpy
    import torch
    from transformers import PreTrainedTokenizerBase

BLOCK_NUMBERS = "block_numbers"
"""Batch key under which block indices travel from the data loader to the guard."""


class IndexedBlock(Block):
    """A block with what only the core knows of it; the objective's collator does not see that."""

    index: int
    """By which the core finds its documents."""
    filled: int
    """Tokens before its padding."""


@dataclass(frozen=True)
class DocumentStarts:
    """Where each document that has text begins, or each part of one that best-fit packing has cut."""

    rows: numpy.ndarray[Any, Any]
    """The document's row in its split, shape (documents,)."""
    offsets: numpy.ndarray[Any, Any]
    """Index of its first token, counted over the places for documents in all blocks, ascending, shape (documents,)."""
    tokens_per_block: int
    """Places for documents in a block; the block's frame belongs to no document."""

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
        self,
        tokens: numpy.ndarray[Any, Any],
        block_size: int,
        seed: int,
        documents: DocumentStarts | None = None,
        filled: numpy.ndarray[Any, Any] | None = None,
    ) -> None:
        self.tokens = tokens.reshape(-1, block_size)
        self.seed = seed
        self.epoch = 0
        self.documents = documents
        self.filled = filled
        """Tokens of each block before its padding, shape (blocks,); None if no block is padded."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> IndexedBlock:
        digest = hashlib.blake2b(f"{self.seed} {self.epoch} {index}".encode(), digest_size=7).digest()
        return {
            "input_ids": self.tokens[index].astype("int64"),
            "seed": int.from_bytes(digest),
            "index": index,
            "filled": self.tokens.shape[1] if self.filled is None else int(self.filled[index]),
        }

    def parts(self, indices: list[int]) -> list[tuple[str, PackedBlocks, list[int]]]:
        """Where these blocks lie: in words, in which blocks, and at which indices."""
        return [("training split", self, indices)]

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the pass over the data."""
        self.epoch = epoch


class IndexedCollator:
    """The objective's collator, with what it does not know added to its batch; it runs in the data loader's workers.

    Block indices are carried past it, and padding is taken out of the batch: see `without_padding`.
    """

    def __init__(self, objective: Objective, tokenizer: PreTrainedTokenizerBase) -> None:
        self.collate = objective.collator(tokenizer)
        self.task: Task = objective.task
        self.padded = objective.packing == "best-fit"

    def __call__(self, blocks: list[IndexedBlock]) -> dict[str, torch.Tensor]:
        """Collate a batch."""
        import numpy
        import torch

        plain: list[Block] = [{"input_ids": block["input_ids"], "seed": block["seed"]} for block in blocks]
        batch = self.collate(plain)
        if self.padded:
            batch = without_padding(batch, numpy.array([block["filled"] for block in blocks]), self.task)
        return {**batch, BLOCK_NUMBERS: torch.tensor([block["index"] for block in blocks])}


def without_padding(
    batch: dict[str, torch.Tensor], filled: numpy.ndarray[Any, Any], task: Task
) -> dict[str, torch.Tensor]:
    """The batch with no label for padding, and with nothing that has a label attending to it.

    In a causal model nothing does, as padding comes last: an attention mask would only make transformers ignore the
    `position_ids` that keep documents apart. In a masked model every token would, so there the batch gets one.

    Args:
        batch: of the objective's collator.
        filled: tokens of each block before its padding, shape (batch,).
        task: the model's.
    """
    import torch

    within = torch.arange(batch["labels"].shape[1]) < torch.from_numpy(filled.astype("int64"))[:, None]
    made = {**batch, "labels": batch["labels"].masked_fill(~within, -100)}
    return made if task == "causal-lm" else {**made, "attention_mask": within * batch.get("attention_mask", 1)}


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
    filled = None
    is_whole = tokens.size == counted.blocks * account.block_size
    if account.packing == "best-fit":
        filled = numpy.memmap(entry / f"{split}.filled", dtype="uint32", mode="r")
        is_whole &= len(filled) == counted.blocks and len(starts) >= counted.documents
    else:
        is_whole &= len(starts) == counted.documents
    if not is_whole:
        raise ValueError(f"{entry} has not the size that its account says")
    frame = counted.frame_tokens // counted.blocks
    documents = DocumentStarts(starts[:, 0], starts[:, 1], account.block_size - frame)
    return PackedBlocks(tokens, account.block_size, seed, documents, filled)
