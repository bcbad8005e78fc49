"""A few documents packed as the objective says, in words: where each block begins a document, ends it or cuts it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.api import Objective
from toolkit.data.best_fit import best_fit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_TOKENS = 24
"""Of each part, at its beginning and at its end."""


@dataclass(frozen=True)
class BlockPart:
    """What a block holds of one document, or its padding."""

    row: int | None
    """The document's row; None for padding."""
    tokens: int
    begins: bool
    """Whether the document begins here, and does not go on from another block."""
    ends: bool
    text: str
    """The part, decoded; of a long one its beginning and its end."""


def sample_blocks(
    documents: Sequence[tuple[int, list[int]]], tokenizer: PreTrainedTokenizerBase, objective: Objective
) -> list[list[BlockPart]]:
    """Pack documents, given by row and token ids, document ends included; an unfinished last block is left out."""
    before, after = objective.block_frame(tokenizer)
    room = objective.block_size - len(before) - len(after)
    pack = _best_fit if objective.packing == "best-fit" else _one_after_the_other
    return [[_part(*cut, tokenizer) for cut in block] for block in pack(documents, room)]


Cut = tuple[int | None, list[int], int, int]
"""A document's row, its ids, and where in it a part begins and ends."""


def _one_after_the_other(documents: Iterable[tuple[int, list[int]]], room: int) -> list[list[Cut]]:
    blocks: list[list[Cut]] = [[]]
    left = room
    for row, ids in documents:
        at = 0
        while at < len(ids):
            stop = min(len(ids), at + left)
            blocks[-1].append((row, ids, at, stop))
            left -= stop - at
            at = stop
            if not left:
                blocks.append([])
                left = room
    return blocks[:-1]


def _best_fit(documents: Iterable[tuple[int, list[int]]], room: int) -> list[list[Cut]]:
    cuts: list[Cut] = [
        (row, ids, at, min(len(ids), at + room)) for row, ids in documents for at in range(0, len(ids), room)
    ]
    blocks = [[cuts[number] for number in block] for block in best_fit([stop - at for _, _, at, stop in cuts], room)]
    for block in blocks:
        if padding := room - sum(stop - at for _, _, at, stop in block):
            block.append((None, [], 0, padding))
    return blocks


def _part(row: int | None, ids: list[int], at: int, stop: int, tokenizer: PreTrainedTokenizerBase) -> BlockPart:
    inside = ids[at:stop]
    if len(inside) <= 2 * SHOWN_TOKENS:
        text = str(tokenizer.decode(inside))
    else:
        text = f"{tokenizer.decode(inside[:SHOWN_TOKENS])} [...] {tokenizer.decode(inside[-SHOWN_TOKENS:])}"
    return BlockPart(row, stop - at, begins=at == 0, ends=stop >= len(ids), text=text)
