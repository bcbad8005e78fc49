"""Never holds the logits of all tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from pydantic import Field

from toolkit.api import Change, Claim, Device, Fidelity, Memory


class ChunkedLoss(Memory):
    """Compute the loss a few tokens at a time, and forget their logits before the next ones.

    Logits are as wide as the vocabulary: a sequence of 1,024 tokens of GPT-2 has 206 MB of them, and its loss holds
    them two or three times. The numbers change only by the order in which floating-point sums are taken; the speed
    hardly does. Hsu et al. 2024, https://arxiv.org/abs/2410.10989. Not for models that change their logits after the
    head, as Gemma does; they are refused.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"logits"})
    fidelity: ClassVar[Fidelity] = "exact"

    tokens: int = Field(default=256, ge=1)
    """Tokens whose logits are held at a time. Each chunk costs a pass over the head's gradient."""

    @classmethod
    def candidates(cls, settings: Mapping[str, Any], device: Device) -> Iterable[Self]:
        """One; smaller chunks hardly save more."""
        return [cls()]

    def changes(self, settings: Mapping[str, Any], device: Device) -> Mapping[str, Change]:
        """Set the size of the loss's chunks."""
        return {"loss_chunk_size": Change(self.tokens, "logits are as wide as the vocabulary")}
