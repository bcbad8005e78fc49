"""Best-fit packing: documents stay whole where they fit into a block, and blocks are padded where nothing fits.

Ding et al. 2024, "Fewer Truncations Improve Language Modeling", https://arxiv.org/abs/2404.10830: a document longer
than a block is cut into pieces as long as a block, and a rest; then pieces are placed, longest first, each where it
leaves the least room (best-fit decreasing). The paper sorts a whole corpus. Here a window of it is sorted at a time, so
that memory does not grow with the corpus and the blocks keep its order from window to window; what that costs in
padding is in tests/benchmarks/results/best_fit.txt.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolkit.api import Objective

if TYPE_CHECKING:
    import numpy
    from transformers import PreTrainedTokenizerBase

WINDOW_TOKENS = 2**22
"""Tokens that are placed together; 16 MB of them wait in memory."""
MIN_WINDOW_BLOCKS = 64
"""Of long blocks a window holds at least so many, because among few there is little to choose from."""


@dataclass(frozen=True)
class DocumentPart:
    """A document, or a part of one that is longer than a block."""

    row: int
    tokens: numpy.ndarray[Any, Any]
    """uint32, shape (tokens,)."""


@dataclass(frozen=True)
class PaddedBlocks:
    """Blocks as they are stored, and what is in them."""

    tokens: numpy.ndarray[Any, Any]
    """Shape (blocks, block_size)."""
    filled: numpy.ndarray[Any, Any]
    """Tokens of each block before its padding, frame included, shape (blocks,)."""
    starts: numpy.ndarray[Any, Any]
    """Row of each document part, and the index of its first token among the blocks' places for documents, in order,
    shape (parts, 2)."""


class BestFit:
    """Collects the documents of a split and places a window of them at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> None:
        import numpy

        before, after = objective.block_frame(tokenizer)
        self.before, self.after = (numpy.array(part, dtype="uint32") for part in (before, after))
        self.block_size = objective.block_size
        self.room = objective.block_size - len(before) - len(after)
        self.padding = padding_id(tokenizer, objective)
        self.window = max(WINDOW_TOKENS, MIN_WINDOW_BLOCKS * self.room)
        self.documents_in_several_blocks = 0
        self._placed = 0
        """Blocks so far."""
        self._ready: list[list[DocumentPart]] = []
        self._waiting: list[DocumentPart] = []
        self._waiting_tokens = 0
        self._row = -1
        self._open = numpy.empty(0, dtype="uint32")
        """Tokens of the document that has not ended yet, at most a block of them."""
        self._parts_of_open = 0

    def add(self, line: numpy.ndarray[Any, Any], starts: Iterable[tuple[int, int]]) -> PaddedBlocks:
        """Take the next tokens of the split, and return the blocks of the windows that they complete.

        Args:
            line: token ids, shape (tokens,).
            starts: row of each document that begins among them, and the index of its first token in `line`.
        """
        line = line.astype("uint32")
        begin = 0
        for row, start in starts:
            self._continue(line[begin:start])
            self._end()
            self._row, begin = row, start
        self._continue(line[begin:])
        return self._padded()

    def rest(self) -> PaddedBlocks:
        """End the last document, and return the blocks of the last window."""
        self._end()
        self._place()
        return self._padded()

    def _continue(self, tokens: numpy.ndarray[Any, Any]) -> None:
        import numpy

        self._open = numpy.concatenate([self._open, tokens]) if len(self._open) else tokens
        while len(self._open) > self.room:
            self._wait(self._open[: self.room])
            self._open = self._open[self.room :]

    def _end(self) -> None:
        if len(self._open):
            self._wait(self._open)
        self.documents_in_several_blocks += self._parts_of_open > 1
        self._open, self._parts_of_open = self._open[:0], 0

    def _wait(self, tokens: numpy.ndarray[Any, Any]) -> None:
        self._waiting.append(DocumentPart(self._row, tokens))
        self._waiting_tokens += len(tokens)
        self._parts_of_open += 1
        if self._waiting_tokens >= self.window:
            self._place()

    def _place(self) -> None:
        parts, self._waiting, self._waiting_tokens = self._waiting, [], 0
        placed = best_fit([len(part.tokens) for part in parts], self.room)
        self._ready += [[parts[number] for number in block] for block in placed]

    def _padded(self) -> PaddedBlocks:
        import numpy

        blocks, self._ready = self._ready, []
        tokens = numpy.full((len(blocks), self.block_size), self.padding, dtype="uint32")
        filled = numpy.zeros(len(blocks), dtype="uint32")
        starts: list[tuple[int, int]] = []
        for number, (block, parts) in enumerate(zip(tokens, blocks, strict=True)):
            place = (self._placed + number) * self.room
            for part in parts:
                starts.append((part.row, place))
                place += len(part.tokens)
            content = numpy.concatenate([self.before, *(part.tokens for part in parts), self.after])
            block[: len(content)] = content
            filled[number] = len(content)
        self._placed += len(blocks)
        return PaddedBlocks(tokens, filled, numpy.array(starts, dtype="int64").reshape(-1, 2))


def best_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Place items into as few bins of this room as best-fit decreasing needs.

    Args:
        sizes: of the items, each between 1 and `room`.
        room: of a bin.

    Returns:
        The items of each bin by number, ascending; the bins in the order of their first items.
    """
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    """Numbers of the bins that have so much room left."""
    rooms: list[int] = []
    """The keys of `with_room`, sorted."""
    for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        at = bisect_left(rooms, sizes[item])
        if at == len(rooms):
            chosen, left = len(bins), room - sizes[item]
            bins.append([])
        else:
            chosen, left = with_room[rooms[at]].pop(), rooms[at] - sizes[item]
            if not with_room[rooms[at]]:
                del with_room[rooms.pop(at)]
        bins[chosen].append(item)
        if left:
            if left not in with_room:
                with_room[left] = []
                rooms.insert(bisect_left(rooms, left), left)
            with_room[left].append(chosen)
    return sorted(sorted(items) for items in bins)


def padding_id(tokenizer: PreTrainedTokenizerBase, objective: Objective) -> int:
    """The id that fills up blocks: the one that ends documents, or 0 where none does.

    Which one it is changes no number, because padding has no label and nothing that has one attends to it. At the pad
    token transformers would warn that an attention mask is missing.
    """
    end = objective.document_end(tokenizer)
    return end[-1] if end else 0
