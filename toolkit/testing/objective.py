"""The checks of an objective plugin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolkit.api import Block, Objective
from toolkit.testing.bench import BLOCK_SIZE, Bench, disturb_random_numbers, require

if TYPE_CHECKING:
    import torch

BLOCKS_PER_BATCH = 4
BATCHES = 400
"""Of BLOCKS_PER_BATCH blocks each. A fault in 2 % of the batches is missed once in 3,000 times."""
MIN_LABELLED_SHARE = 0.01
"""Smallest share of tokens that have a label; below it, training would waste more than 99 % of its compute."""


def tokens(plugin: Objective, bench: Bench) -> str:
    """The document end and the block frame consist of tokens of the tokenizer."""
    end = plugin.document_end(bench.tokenizer)
    before, after = plugin.block_frame(bench.tokenizer)
    for what, ids in (("document_end", end), ("block_frame", (*before, *after))):
        wrong = [token for token in ids if not isinstance(token, int) or not 0 <= token < len(bench.tokenizer)]
        require(not wrong, f"{what} returns {wrong[0] if wrong else None!r}, which is not a token id of the tokenizer")
    room = len(before) + len(after) < plugin.block_size
    require(room, f"its frame leaves no room in a block of {plugin.block_size} tokens")
    return f"documents end in {end}, blocks are framed by {before} and {after}"


def batch(plugin: Objective, bench: Bench) -> str:
    """A batch has inputs and labels, and nothing that the model would ignore."""
    from toolkit.training.without_effect import check_batch

    made = _collated(plugin, bench, _blocks(plugin, bench))
    for key in ("input_ids", "labels"):
        require(key in made, f"the batch has no {key}, only {', '.join(made)}")
        shape = tuple(made[key].shape)
        expected = (BLOCKS_PER_BATCH, plugin.block_size)
        require(shape == expected, f"{key} has the shape {shape} and not (batch, block_size), which is {expected}")
        require(not made[key].is_floating_point(), f"{key} holds {made[key].dtype} and no whole numbers")
    inputs, wanted = made["input_ids"], made["labels"]
    vocabulary = len(bench.tokenizer)
    inside = bool(((inputs >= 0) & (inputs < vocabulary)).all())
    require(inside, "input_ids holds something that is not a token id of the tokenizer")
    known = bool(((wanted == -100) | ((wanted >= 0) & (wanted < vocabulary))).all())
    require(known, "a label is neither -100 nor a token id of the tokenizer")
    require(bool((wanted != -100).any()), "no token of the whole batch has a label, so nothing would be learned")
    check_batch(made, bench.model("gpt2" if plugin.task == "causal-lm" else "bert"))
    return ", ".join(made)


def labels(plugin: Objective, bench: Bench) -> str:
    """A label is the token at its own position, and what is to be predicted does not show in the inputs."""
    import torch

    causal = plugin.task == "causal-lm"
    end = plugin.document_end(bench.tokenizer)[-1:]
    count = learned = hidden = ends = 0
    for blocks in _batches(plugin, bench):
        made = _collated(plugin, bench, blocks)
        inputs, wanted = made["input_ids"], made["labels"]
        given = torch.stack([torch.from_numpy(block["input_ids"]) for block in blocks])
        known = wanted != -100
        wrong = known & (wanted != given) & ~(causal & (wanted == inputs))
        if wrong.any():
            ahead = given.roll(-1, dims=1)
            shifted = (wanted == ahead)[known].float().mean() > 0.9
            why = (
                "labels are the inputs moved by one, and the toolkit moves them itself: leave them in place"
                if shifted
                else "a label is another token than the one at its place in the block"
            )
            require(False, why)
        if causal and end:
            left_out = (given == end[0]) & ~known
            left_out[:, 0] = False  # the first token is never predicted
            require(
                not left_out.any(),
                f"{int(left_out.sum())} of the {int((given == end[0]).sum())} document ends in a batch have no label, "
                f"so the model would not learn where documents end",
            )
            ends += int((given == end[0]).sum())
        count += known.numel()
        learned += int(known.sum())
        hidden += int((known & (inputs != given)).sum())
    share = learned / count
    require(share >= MIN_LABELLED_SHARE, f"only {share:.2%} of the tokens have a label")
    require(causal or hidden, "no token that is to be filled in is hidden: each stands in the inputs as it is")
    closed = f", {ends:,} document ends among them" if ends else ""
    return f"{share:.0%} of {count:,} tokens have a label{closed}"


def seeded(plugin: Objective, bench: Bench) -> str:
    """A row of a batch depends only on its block and the block's seed, in whichever batch, however often collated."""
    from toolkit.system.rng_state import RandomState

    disturb_random_numbers(1)
    first: list[str] = []
    for blocks in _batches(plugin, bench):
        before, kept = RandomState.now(), [block["input_ids"].copy() for block in blocks]
        first += _rows(_collated(plugin, bench, blocks))
        drawn = before.differs_from(RandomState.now())
        require(
            not drawn, f"the collator draws from the global random numbers of {drawn}; draw from block['seed'] alone"
        )
        untouched = all((block["input_ids"] == copy).all() for block, copy in zip(blocks, kept, strict=True))
        require(untouched, "the collator changes the blocks that it is given; change a copy")
    disturb_random_numbers(2)
    again = [row for blocks in _batches(plugin, bench) for row in _rows(_collated(plugin, bench, blocks))]
    require(first == again, "the same blocks with the same seeds give another batch; draw from block['seed'] alone")
    every = [block for blocks in _batches(plugin, bench) for block in blocks]
    collate = plugin.collator(bench.tokenizer)
    for start in range(1, len(every), len(every) // 20):  # alone, and beside other blocks
        for size in (1, 3):
            rows = _rows(collate(every[start : start + size]))
            require(
                rows == first[start : start + size],
                "a block gives another row beside other blocks; draw from each block's own seed",
            )
    return f"a block's own seed decides its row, in {BATCHES} batches of {BLOCKS_PER_BATCH}"


def _batches(plugin: Objective, bench: Bench) -> Iterator[list[Block]]:
    """Many batches, as the toolkit packs and frames them."""
    end, frame = plugin.document_end(bench.tokenizer), plugin.block_frame(bench.tokenizer)
    blocks = bench.blocks(BATCHES * BLOCKS_PER_BATCH, min(plugin.block_size, BLOCK_SIZE), end=end, frame=frame)
    for start in range(0, len(blocks), BLOCKS_PER_BATCH):
        yield blocks[start : start + BLOCKS_PER_BATCH]


def _rows(batch: Mapping[str, Any]) -> list[str]:
    """A digest of each row of a batch."""
    digests = [hashlib.blake2b(digest_size=8) for _ in batch["input_ids"]]
    for key in sorted(batch):
        for digest, row in zip(digests, batch[key], strict=True):
            digest.update(key.encode() + row.numpy().tobytes())
    return [digest.hexdigest() for digest in digests]


def loss(plugin: Objective, bench: Bench) -> str:
    """A model of its task learns from the batch."""
    import torch

    from toolkit.training.loss import token_mean_loss

    small = plugin.model_copy(update={"block_size": min(plugin.block_size, BLOCK_SIZE)})
    made = _collated(small, bench, _blocks(small, bench))
    model = bench.model("gpt2" if plugin.task == "causal-lm" else "bert")
    wanted = made.pop("labels")
    value = token_mean_loss(plugin.task)(model(**made), wanted)
    require(bool(torch.isfinite(value)), f"the loss of a small model is {value.item()}")
    value.backward()
    return f"a new model has a loss of {value.item():.2f}"


def _blocks(plugin: Objective, bench: Bench) -> list[Block]:
    return bench.blocks(BLOCKS_PER_BATCH, plugin.block_size)


def _collated(plugin: Objective, bench: Bench, blocks: Sequence[Block]) -> dict[str, torch.Tensor]:
    return plugin.collator(bench.tokenizer)(list(blocks))


CHECKS = (("tokens", tokens), ("batch", batch), ("labels", labels), ("seed", seeded), ("loss", loss))
