"""The blocks of a mixture: every pass over a source reads each of its blocks once, in an order of its own."""

from __future__ import annotations

from collections import defaultdict

import numpy
import pytest

from toolkit.data.interleaving import Interleaving, StageOrder
from toolkit.data.mixture import HeldOutBlocks, MixedBlocks
from toolkit.data.packed_dataset import DocumentStarts, PackedBlocks


def source(first: int, blocks: int) -> PackedBlocks:
    """Blocks of four tokens, each of which is the block's number; a document a block."""
    tokens = numpy.repeat(numpy.arange(first, first + blocks), 4)
    starts = DocumentStarts(numpy.arange(blocks), numpy.arange(blocks) * 4, tokens_per_block=4)
    return PackedBlocks(tokens, 4, seed=1, documents=starts)


SOURCES = {"web": source(0, 50), "math": source(1000, 7)}


def mixed(seed: int = 1, blocks: int = 100) -> MixedBlocks:
    return MixedBlocks(SOURCES, Interleaving([StageOrder.of(blocks, [3, 1])]), seed)


def test_each_pass_reads_each_block_once_in_an_order_of_its_own() -> None:
    run = mixed()
    passes: dict[tuple[str, int], list[int]] = defaultdict(list)
    for position in range(len(run)):
        name, number, index = run.place(position)
        passes[name, number].append(index)
        assert run[position]["input_ids"].tolist() == [(1000 if name == "math" else 0) + index] * 4
    assert {key: sorted(indices) for key, indices in passes.items() if len(indices) in (7, 50)} == {
        ("web", 0): list(range(50)),
        **{("math", number): list(range(7)) for number in range(3)},
    }
    assert len({tuple(passes["math", number]) for number in range(3)}) == 3


def test_the_order_is_a_function_of_seed_and_position() -> None:
    blocks, again, other = mixed(), mixed(), mixed(seed=2)
    one, same, different = (
        [(int(run[at]["input_ids"][0]), run[at]["seed"]) for at in range(100)] for run in (blocks, again, other)
    )
    assert one == same
    assert sum(mine == theirs for mine, theirs in zip(one, different, strict=True)) < 10
    assert [block for block, _ in one] == [int(mixed(blocks=1000)[at]["input_ids"][0]) for at in range(100)]
    assert len({seed for _, seed in one}) == 100  # a repeated block has other seeds, too


def test_a_batch_is_found_in_its_sources() -> None:
    run = mixed()
    for where, blocks, indices in run.parts(list(range(8))):
        assert blocks.documents is not None
        assert blocks.documents.in_blocks(indices) == sorted(indices)
        assert where in ("source web", "source math")


def test_held_out_blocks_know_their_source() -> None:
    held_out = HeldOutBlocks(SOURCES)
    assert len(held_out) == 57
    assert [held_out.names[held_out.number_of(index)] for index in (0, 49, 50, 56)] == ["web", "web", "math", "math"]
    assert held_out[50]["input_ids"].tolist() == [1000] * 4
    assert held_out[50]["index"] == 50
    with pytest.raises(IndexError):
        held_out[57]
