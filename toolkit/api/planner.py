"""The planner's hooks: optional methods that a plugin may define for `toolkit recipe plan` and `memory: [auto]`.

A plugin without them is planned as it is. docs/plugins-and-the-planner.md says when one is worth defining.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from toolkit.api.context import RunContext
from toolkit.api.settings import Settings
from toolkit.system.device import Device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@runtime_checkable
class TokenizerSkeleton(Protocol):
    """Of a tokenizer that learns from the documents, which a plan does not load."""

    def skeleton(self, run: RunContext) -> PreTrainedTokenizerBase:
        """Return a tokenizer with the vocabulary size and special tokens of the one that `build` would return."""


@runtime_checkable
class ModelSkeleton(Protocol):
    """Of a model that loads weights, or that inspects their values."""

    def skeleton(self, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> PreTrainedModel:
        """Return the model that `build` would return, with arbitrary weights; nothing large is downloaded or read.

        Called under torch's fake tensors, which have a shape but no storage: no value can be read.
        """


@runtime_checkable
class Candidates(Protocol):
    """Of a memory strategy that `auto` may choose."""

    @classmethod
    def candidates(cls, settings: Settings, device: Device) -> Iterable[Self]:
        """Return the variants that `auto` may try on this device.

        Keep them few: each is planned, alone and combined with other strategies. The time a variant costs is not
        declared but estimated from the operations of the resulting step.
        """


@runtime_checkable
class ExportBytes(Protocol):
    """Of an exporter that takes other memory than it takes to load what is saved."""

    def export_bytes(self, *, weights: int, saved: int) -> int:
        """Return the memory that `export` takes beside the model.

        Args:
            weights: bytes of all of the model's weights.
            saved: bytes of the weights in a checkpoint, which are the adapter's alone if there is one.
        """


VOCABULARY_MULTIPLE = 64
"""A loss may fill the vocabulary up to a multiple of this for its products; the plan knows its logits by that width.

GPT-2's 50,257 rows have no alignment: an H100 takes 17 ms for each of the three products of 32 x 1,024 tokens, in
kernels made for sm75; a CPU with AVX-512 a fifth longer for the weight's gradient in bfloat16.
"""


def chunk_starts(length: int, chunk_size: int) -> Iterable[int]:
    """Return where each chunk of a loss starts, for one that is computed in chunks: 0, chunk_size, 2 * chunk_size, ...

    A plan goes through two whole ones and the rest, and counts the others by the second; with a `range`, it would go
    through all.
    """
    return every_start(length, chunk_size)


def every_start(length: int, chunk_size: int) -> Iterable[int]:
    """All of them: what a plan replaces."""
    return range(0, length, chunk_size)


PLANNER_HOOKS: Mapping[str, type] = {
    "tokenizer": TokenizerSkeleton,
    "model": ModelSkeleton,
    "memory": Candidates,
    "exporter": ExportBytes,
}
"""The planner's hook of each kind that has one."""
