"""The order of a stream's blocks: known before the blocks are, and the same however many are there."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from toolkit.data.interleaving import shuffled_within
from toolkit.data.streamed_blocks import Arrival, GrowingBlocks, StreamedBlocks

BLOCKS, WINDOW = 103, 10


def streamed(folder: Path, *, length: int = 250, seed: int = 1) -> StreamedBlocks:
    tokens = numpy.arange(4 * BLOCKS, dtype="uint16")
    arrival = Arrival(folder, None, patience=0.2)
    return StreamedBlocks(GrowingBlocks(tokens, 4, seed), arrival, length=length, window=WINDOW, seed=seed)


def test_a_window_is_permuted_in_itself() -> None:
    order = [shuffled_within(index, BLOCKS, WINDOW, "key") for index in range(BLOCKS)]
    for first in range(0, BLOCKS, WINDOW):
        window = order[first : first + WINDOW]
        assert sorted(window) == list(range(first, min(first + WINDOW, BLOCKS)))
    assert order != list(range(BLOCKS))
    shapes = {tuple(at - first for at in order[first : first + WINDOW]) for first in range(0, 100, WINDOW)}
    assert len(shapes) > 5  # each window in its own way


def test_a_pass_has_every_block_once_and_the_next_another_order(tmp_path: Path) -> None:
    blocks = streamed(tmp_path)
    passes = [[blocks.place(number * BLOCKS + index)[1] for index in range(BLOCKS)] for number in range(2)]
    assert [sorted(one) for one in passes] == [list(range(BLOCKS))] * 2
    assert passes[0] != passes[1]
    assert [blocks.place(position)[0] for position in (0, BLOCKS - 1, BLOCKS, 249)] == [0, 0, 1, 2]
    assert passes[0] != [streamed(tmp_path, seed=2).place(index)[1] for index in range(BLOCKS)]
    with pytest.raises(IndexError):
        blocks.place(250)


def test_what_is_needed_is_enough_and_no_more(tmp_path: Path) -> None:
    blocks = streamed(tmp_path)
    for positions in range(1, 250):
        read = [blocks.place(position) for position in range(positions)]
        furthest = max(index for _, index in read)
        needed = blocks.needed(positions)
        assert furthest < needed <= BLOCKS
        assert needed == BLOCKS or needed - furthest <= WINDOW
    assert blocks.needed(1) == WINDOW


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    from toolkit.errors import UnavailableError

    with pytest.raises(UnavailableError, match="no progress"):
        streamed(tmp_path)[0]
