"""Whether the first blocks of a split, read as in training, are what the tokenizer gives now for their texts.

These texts lie in the cache entry, so that a warm start loads no documents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.api import Objective
from toolkit.data.block_writer import Packer
from toolkit.data.encoding import Batch, TokenizerCalled, batches
from toolkit.data.packed_dataset import PackedBlocks
from toolkit.system.files import read_json, write_json

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

BLOCKS_READ_BACK = 8
"""Blocks of each split that are checked against the tokenizer before training."""
CHARACTERS_PER_TOKEN = 8
"""With fewer, all of these are; with more, some."""


def differs(
    blocks: PackedBlocks,
    file: Path,
    data: Mapping[str, Dataset],
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
) -> bool:
    """Whether the first blocks differ from what the tokenizer gives.

    Args:
        blocks: of the split.
        file: with the texts of these blocks; it is written if it is not there.
        data: the splits, which are read only then.
        split: by name.
        tokenizer: turns the texts into tokens.
        objective: determines the blocks.
    """
    texts = _texts(file, blocks, data, split, objective)
    if objective.packing == "best-fit":
        return _parts_differ(blocks, texts, tokenizer, objective)
    import numpy

    first = _first_blocks(texts, tokenizer, objective)[: len(blocks)]
    return any(not numpy.array_equal(block, blocks[row]["input_ids"]) for row, block in enumerate(first))


def _first_blocks(
    beginning: Batch, tokenizer: PreTrainedTokenizerBase, objective: Objective
) -> numpy.ndarray[Any, Any]:
    """Pack the first blocks of a split from its first texts; shape (`BLOCKS_READ_BACK` or fewer, block_size)."""
    packer = Packer(tokenizer, objective)
    line = packer.add(beginning.shard(TokenizerCalled(tokenizer), packer.highest_id))
    return packer.blocks(line)[:BLOCKS_READ_BACK]


def _parts_differ(blocks: PackedBlocks, texts: Batch, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> bool:
    """Whether the first blocks of best-fit packing hold anything but parts of these documents as they are encoded now.

    Documents that are not among the texts are left out.
    """
    import numpy

    if not texts.texts:
        return False
    assert blocks.documents
    assert blocks.filled is not None
    shard = texts.shard(TokenizerCalled(tokenizer), Packer(tokenizer, objective).highest_id)
    end, room = objective.document_end(tokenizer), blocks.documents.tokens_per_block
    whole = {row: numpy.append(ids, end) for row, ids in shard.by_text()}
    before, after = map(len, objective.block_frame(tokenizer))
    filled = blocks.filled[:BLOCKS_READ_BACK].tolist()
    ends = [index * room + tokens - before - after for index, tokens in enumerate(filled)]
    parts = int(blocks.documents.offsets.searchsorted(len(ends) * room))
    rows, starts = blocks.documents.rows[:parts].tolist(), blocks.documents.offsets[:parts].tolist()
    for row, start, following in zip(rows, starts, [*starts[1:], ends[-1]], strict=True):
        index, at = divmod(start, room)
        part = blocks[index]["input_ids"][before + at :][: min(following, ends[index]) - start]
        cuts = range(0, len(whole.get(row, ())), room)
        if row in whole and not any(numpy.array_equal(part, whole[row][cut : cut + room]) for cut in cuts):
            return True
    return False


def _texts(file: Path, blocks: PackedBlocks, data: Mapping[str, Dataset], split: str, objective: Objective) -> Batch:
    """The texts of the first blocks of a split, from this file if it is there."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Batch(**read_json(file))
    most = BLOCKS_READ_BACK * objective.block_size * CHARACTERS_PER_TOKEN
    if objective.packing == "best-fit":
        batch = _placed_first(blocks, data[split], most)
    else:
        batch = next(batches(data[split], most_characters=most))
    with contextlib.suppress(OSError):  # of a cache that cannot be written, which does not matter yet
        write_json(file, asdict(batch))
    return batch


def _placed_first(blocks: PackedBlocks, split: Dataset, most: int) -> Batch:
    """The documents in the first blocks of best-fit packing, which come from anywhere in its first window.

    Those long enough to be encoded in pieces are left out: a part may be anywhere in them.
    """
    assert blocks.documents
    rows = blocks.documents.in_blocks(range(min(BLOCKS_READ_BACK, len(blocks))))
    found, kept = next(batches(split.select(rows))), Batch((0, 0))
    for number, (text, is_last) in enumerate(zip(found.texts, found.is_last, strict=True)):
        if is_last and found.rows[number] not in found.rows[max(0, number - 1) : number] and kept.characters < most:
            kept.add(text, rows[found.rows[number]], 0, is_last=True)
    return kept
