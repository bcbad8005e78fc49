"""Chunked loss: never holds the logits of all tokens at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

from pydantic import Field

from toolkit.api import Change, Claim, Device, Fidelity, Settings, Strategy


class ChunkedLoss(Strategy):
    """Compute the loss one chunk of tokens at a time, and free its logits before the next chunk.

    Logits are as wide as the vocabulary: a 1,024-token sequence has 206 MB of them in GPT-2, and the loss holds two or
    three copies. The numbers change only by the order of floating-point summation, and the speed hardly changes.
    Hsu et al. 2024, https://arxiv.org/abs/2410.10989. Models that transform their logits after the head, as Gemma
    does, are refused.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"logits"})
    fidelity: ClassVar[Fidelity] = "exact"

    tokens: int = Field(default=256, ge=1)
    """Tokens per chunk; only their logits are held at a time. Each chunk costs a pass over the head's gradient."""

    @classmethod
    def candidates(cls, settings: Settings, device: Device) -> Iterable[Self]:
        """One; smaller chunks hardly save any more."""
        return [cls()]

    def changes(self, settings: Settings, device: Device) -> Mapping[str, Change]:
        """Set the chunk size of the loss."""
        return {"loss_chunk_size": Change(self.tokens, "logits are as wide as the vocabulary")}
