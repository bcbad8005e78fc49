"""Chunked loss: never holds the logits of all tokens at once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from toolkit.api import Claim, Device, Fidelity, Loss, RunContext, Settings, Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ChunkedLoss(Strategy):
    """Compute the loss one chunk of tokens at a time, and free its logits before the next chunk.

    Logits are as wide as the vocabulary: a 1,024-token sequence has 206 MB of them in GPT-2, and the loss holds two or
    three copies. The numbers change only by the order of floating-point summation, and the speed hardly changes.
    Hsu et al. 2024, https://arxiv.org/abs/2410.10989. Models that transform their logits after the head, as Gemma
    does, are refused.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"logits"})
    fidelity: ClassVar[Fidelity] = "exact"

    tokens: int = Field(default=512, ge=1)
    """Tokens per chunk; only their logits are held at a time. Each chunk costs a pass over the head's gradient."""

    @classmethod
    def candidates(cls, settings: Settings, device: Device) -> Iterable[Self]:
        """One; smaller chunks hardly save any more."""
        return [cls()]

    def loss(self, model: PreTrainedModel, run: RunContext) -> Loss:
        """The cross-entropy of the hidden states, chunk by chunk."""
        import torch

        from toolkit_plugins.memory.chunked_cross_entropy import ChunkedCrossEntropy

        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[run.precision]
        head: Any = model.get_output_embeddings()
        on_gpu = run.device.kind == "cuda"
        of_chunks = partial(ChunkedCrossEntropy, head, chunk_size=self.tokens, dtype=dtype, on_gpu=on_gpu)
        return Loss(of_chunks(), inputs="hidden_states", compiled=partial(of_chunks, compiled=True))
