"""What an objective has to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.api import Block, Objective
from toolkit.testing.bench import BLOCK_SIZE, Bench, disturb_random_numbers, require

if TYPE_CHECKING:
    import torch

COUNT = 4


def tokens(plugin: Objective, bench: Bench) -> str:
    """What closes documents and frames blocks are tokens of the tokenizer."""
    end = plugin.document_end(bench.tokenizer)
    before, after = plugin.block_frame(bench.tokenizer)
    for what, ids in (("document_end", end), ("block_frame", (*before, *after))):
        wrong = [token for token in ids if not isinstance(token, int) or not 0 <= token < len(bench.tokenizer)]
        require(not wrong, f"{what} returns {wrong[0] if wrong else None!r}, which is no token id of the tokenizer")
    room = len(before) + len(after) < plugin.block_size
    require(room, f"its frame leaves no room in a block of {plugin.block_size} tokens")
    return f"documents end in {end}, blocks are framed by {before} and {after}"


def batch(plugin: Objective, bench: Bench) -> str:
    """Inputs and labels, and the blocks stay as they were."""
    import numpy

    blocks = _blocks(plugin, bench)
    kept = [block["input_ids"].copy() for block in blocks]
    made = _collated(plugin, bench, blocks)
    for key in ("input_ids", "labels"):
        require(key in made, f"the batch has no {key}, only {', '.join(made)}")
        shape = tuple(made[key].shape)
        expected = (COUNT, plugin.block_size)
        require(shape == expected, f"{key} has the shape {shape} and not (batch, block_size), which is {expected}")
        require(not made[key].is_floating_point(), f"{key} holds {made[key].dtype} and no whole numbers")
    inputs, labels = made["input_ids"], made["labels"]
    vocabulary = len(bench.tokenizer)
    inside = bool(((inputs >= 0) & (inputs < vocabulary)).all())
    require(inside, "input_ids holds something that is no token id of the tokenizer")
    known = bool(((labels == -100) | ((labels >= 0) & (labels < vocabulary))).all())
    require(known, "a label is neither -100 nor a token id of the tokenizer")
    require(bool((labels != -100).any()), "no token of the whole batch has a label, so nothing would be learned")
    untouched = all(numpy.array_equal(block["input_ids"], copy) for block, copy in zip(blocks, kept, strict=True))
    require(untouched, "the collator changes the blocks that it is given; change a copy")
    return f"{', '.join(made)}; {(labels != -100).float().mean():.0%} of the tokens are predicted"


def seeded(plugin: Objective, bench: Bench) -> str:
    """A block's own seed is all that its row depends on."""
    disturb_random_numbers(1)
    one = _collated(plugin, bench, _blocks(plugin, bench))
    disturb_random_numbers(2)
    other = _collated(plugin, bench, _blocks(plugin, bench))
    _compare(one, other, "the same blocks with the same seeds give another batch; draw from block['seed'] alone")
    alone = _collated(plugin, bench, _blocks(plugin, bench)[-1:])
    last = {key: value[-1:] for key, value in one.items()}
    _compare(last, alone, "a block gives another row beside other blocks; draw from each block's own seed")
    return "a block's own seed decides its row of the batch"


def loss(plugin: Objective, bench: Bench) -> str:
    """A model of its task learns from the batch."""
    import torch

    from toolkit.loss import token_mean_loss

    small = plugin.model_copy(update={"block_size": min(plugin.block_size, BLOCK_SIZE)})
    made = _collated(small, bench, _blocks(small, bench))
    model = bench.model("gpt2" if plugin.task == "causal-lm" else "bert")
    labels = made.pop("labels")
    value = token_mean_loss(plugin.task)(model(**made), labels)
    require(bool(torch.isfinite(value)), f"the loss of a small model is {value.item()}")
    value.backward()
    return f"a new model has a loss of {value.item():.2f}"


def _blocks(plugin: Objective, bench: Bench) -> list[Block]:
    return bench.blocks(COUNT, plugin.block_size)


def _collated(plugin: Objective, bench: Bench, blocks: Sequence[Block]) -> dict[str, torch.Tensor]:
    return plugin.collator(bench.tokenizer)(list(blocks))


def _compare(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], message: str) -> None:
    import torch

    require(one.keys() == other.keys(), message)
    require(all(torch.equal(one[key], other[key]) for key in one), message)


CHECKS = (("tokens", tokens), ("batch", batch), ("seed", seeded), ("loss", loss))
