"""Turns "30M parameters" into layers, width and heads, and describes a shape in a sentence.

It decides only the shape, by convention: a head size of 64, and a width of 64 to 128 times the number of layers, as in
GPT-2 and GPT-3. Kaplan et al. 2020 (https://arxiv.org/abs/2001.08361, section 3.1) found that over a wide range of
such ratios the loss depends on the number of parameters and hardly on the shape. How many parameters a shape has
depends on the architecture, which passes a function that counts them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

from toolkit.api import OptionError, RunContext, highest_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
TOLERANCE = 0.25
"""Largest relative deviation from the requested size; a model that is further off is refused."""


@dataclass(frozen=True)
class Shape:
    """The three numbers that make a transformer large or small."""

    layers: int
    width: int
    heads: int


TINY = Shape(layers=2, width=64, heads=2)
"""The shape in a rehearsal: two of everything that there can be two of."""


def parameter_count(text: int | str) -> int:
    """Parse "30M", "1.3B", "250K" or a plain number.

    Raises:
        ValueError: it is none of these, or not positive.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMB]?)", str(text).strip(), re.IGNORECASE)
    if not match or (count := round(float(match[1]) * SUFFIXES[match[2].upper()])) < 1:
        raise ValueError(f"{text!r} is not a number of parameters; write 30M, 1.3B or 30000000")
    return count


def in_words(count: int) -> str:
    """The number in its usual short form: 29.8M, 1.31B."""
    for suffix in ("B", "M", "K"):
        if count >= SUFFIXES[suffix]:
            return f"{float(f'{count / SUFFIXES[suffix]:.3g}'):g}{suffix}"
    return str(count)


def usual_heads(width: int) -> int:
    """The usual number of heads for a width: of size 64 if there is room for four of them, otherwise smaller."""
    size = next((size for size in (64, 32, 16) if width % size == 0 and width >= 4 * size), None)
    if size is None:
        size = 16 if width % 16 == 0 else width
    return width // size


def derive(target: int, count: Callable[[Shape], int], *, head_size: int | None = None) -> Shape:
    """Return the shape of usual proportions, and with heads of this size, with about so many parameters as the target.

    Size takes precedence over proportions: 10 % off in size weighs as much as a factor of 2.7 off in proportion.

    Raises:
        OptionError: no shape comes close to the target with this vocabulary.
    """

    def cost(shape: Shape) -> float:
        ratio = shape.width / shape.layers
        proportion = max(0.0, log(64 / ratio), log(ratio / 128))
        return 10 * abs(log(count(shape) / target)) + proportion

    best = min(_shapes(target, count, head_size), key=cost)
    if abs(count(best) / target - 1) > TOLERANCE:
        raise OptionError(
            f"no model of about {in_words(target)} parameters exists for this vocabulary: the nearest has "
            f"{in_words(count(best))}; ask for that, or give the tokenizer a smaller vocab_size",
            option="parameters",
        )
    return best


def _shapes(target: int, count: Callable[[Shape], int], head_size: int | None) -> Iterator[Shape]:
    """For each width, all usual shapes up to the first that is too large; the smallest shape in any case."""
    usual = [*range(16, 128, 16), *range(128, 256, 32), *range(256, 1024, 64), *range(1024, 16385, 128)]
    widths = [width for width in usual if width % (head_size or 1) == 0]
    for width in widths:
        heads = width // head_size if head_size else usual_heads(width)
        for layers in (2, 3, *range(4, 129, 2)):
            yield (shape := Shape(layers, width, heads))
            if count(shape) > 2 * target:
                break
        if layers == 2 and width > widths[0]:
            return


def tell(run: RunContext, shape: Shape, count: int, vocabulary: int, *, asked: int | str | None) -> None:
    """Log which model this is, and what was derived from the requested size."""
    if asked is None:
        run.log.info(
            "%s: a model of %s parameters with the %s-token vocabulary",
            _words(shape),
            in_words(count),
            f"{vocabulary:,}",
        )
        return
    said = str(asked) if isinstance(asked, str) else in_words(asked)
    run.log.info(
        "%s parameters: %s (%s with the %s-token vocabulary)", said, _words(shape), in_words(count), f"{vocabulary:,}"
    )


def _words(shape: Shape) -> str:
    return f"{shape.layers} layers x {shape.width}, {shape.heads} head{'s' if shape.heads > 1 else ''}"


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that the embedding needs: one for each token id up to the highest.

    Not rounded up to a multiple of 64: rows without a token could still be sampled, and the exported model's
    vocabulary would not match its tokenizer's. For a rounder matrix, set `vocab_size` of the tokenizer.
    """
    return highest_id(tokenizer) + 1


def positions(asked: int | None, run: RunContext) -> int:
    """The longest sequence that the model can read: as requested, or one block.

    Raises:
        OptionError: a block would not fit.
    """
    if asked is not None and asked < run.block_size:
        raise OptionError(
            f"{asked} positions are fewer than the objective's block_size of {run.block_size}; "
            f"raise max_position_embeddings or lower block_size",
            option="max_position_embeddings",
        )
    return asked or run.block_size


def only_causal(run: RunContext, name: str) -> None:
    """Refuse a task that this architecture has no head for.

    Raises:
        OptionError: the task is not causal-lm.
    """
    if run.task != "causal-lm":
        raise OptionError(
            f"{name} predicts the next token and cannot fill in hidden ones; take the objective causal-lm, or a "
            f"model with a masked-lm head: {{plugin: pretrained, path: google-bert/bert-base-uncased}}"
        )
