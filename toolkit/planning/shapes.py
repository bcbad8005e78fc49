"""The shape of a GPT-2 or a Llama of about so many parameters, with its parameters and FLOPs counted by hand.

By hand, because a suggestion tries hundreds of shapes, and building one takes transformers. A test holds the counts to
those of the real models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Architecture = Literal["llama", "gpt2"]

USUAL_RATIO = (64, 128)
"""Width over layers in GPT-2 and GPT-3. In a wide range of it the loss depends on the size alone (Kaplan and others
2020, https://arxiv.org/abs/2001.08361, section 3.1)."""
WIDTHS = (*range(64, 256, 32), *range(256, 1024, 64), *range(1024, 8193, 128))
DEPTHS = (2, 3, *range(4, 97, 2))
VOCABULARIES = (4096, 32768)
"""From 4,096 tokens, below which text falls into letters, to what is usual for one language."""
BLOCKS = (128, 2048)


@dataclass(frozen=True)
class TransformerShape:
    """A model of a certain architecture, with a tied head."""

    architecture: Architecture
    layers: int
    width: int
    vocabulary: int

    @property
    def heads(self) -> int:
        """Heads of 64, and of 32 where there would be fewer than four."""
        return self.width // (64 if self.width >= 256 else 32)

    @property
    def block_size(self) -> int:
        """Positions: a power of two up to twice the width, so that attention takes a quarter of the arithmetic at most.

        Attention takes block / (6 x width) of what the matrices of a layer take.
        """
        return min(max(1 << int(math.log2(2 * self.width)), BLOCKS[0]), BLOCKS[1])

    @property
    def hidden_parameters(self) -> int:
        """Parameters of the layers alone, without embeddings, which is the N of most laws of the learning rate."""
        if self.architecture == "gpt2":
            return self.layers * (12 * self.width**2 + 13 * self.width) + 2 * self.width
        feed_forward = -(-self.width * 8 // 3 // 64) * 64
        return self.layers * (4 * self.width**2 + 3 * self.width * feed_forward + 2 * self.width) + self.width

    @property
    def parameters(self) -> int:
        """All parameters, embeddings included."""
        positions = self.block_size if self.architecture == "gpt2" else 0
        return self.hidden_parameters + (self.vocabulary + positions) * self.width

    @property
    def flops_per_token(self) -> int:
        """Forward and backward, as `toolkit.training.model_flops` counts them."""
        multiplied = self.hidden_parameters + self.vocabulary * self.width
        return 6 * multiplied + 12 * self.layers * self.width * self.block_size


def shape_of(parameters: float, architecture: Architecture, vocabulary: int | None = None) -> TransformerShape:
    """The shape of usual proportions that comes closest to this size; without a `vocabulary`, it grows with the width.

    10 % off in size weighs as much as a factor of 1.5 in proportion.
    """

    def cost(shape: TransformerShape) -> float:
        ratio = shape.width / shape.layers
        unusual = max(0.0, math.log(USUAL_RATIO[0] / ratio), math.log(ratio / USUAL_RATIO[1]))
        return 4 * abs(math.log(shape.parameters / parameters)) + unusual

    shapes = (
        TransformerShape(architecture, layers, width, vocabulary or usual_vocabulary(width))
        for width in WIDTHS
        for layers in DEPTHS
    )
    return min(shapes, key=cost)


def usual_vocabulary(width: int) -> int:
    """A power of two, with which the embedding is at most a third of a model of usual proportions if there is one."""
    return min(max(1 << int(math.log2(width**2 / 16)), VOCABULARIES[0]), VOCABULARIES[1])
