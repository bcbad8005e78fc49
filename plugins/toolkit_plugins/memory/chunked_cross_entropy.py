"""The cross-entropy in chunks of tokens, so that only one chunk's logits exist at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from toolkit.api import chunk_starts

IGNORE_INDEX = -100
"""The label of a token that is not predicted."""


class ChunkedCrossEntropy:
    """The cross-entropy with the logits of `chunk_size` tokens at a time, in training and in evaluation.

    GPT-2's logits take 200 KB per token, and their gradients as much again. Here the gradients are computed in the
    forward pass, chunk by chunk, while the logits exist; only the gradients of the hidden states and of the head's
    weight are kept. Hsu et al. 2024 (Liger), https://arxiv.org/abs/2410.10989. The price: no extra matrix products,
    but one pass over the head's gradient per chunk.

    Why not `torch.nn.functional.linear_cross_entropy` (2.13): it is not in every version of torch that we support,
    and with its default chunks it takes as much memory as the plain loss for one sequence of 1024 tokens.
    """

    def __init__(self, head: torch.nn.Linear, *, chunk_size: int, dtype: torch.dtype | None) -> None:
        """`dtype` is that of the matrix products, if not the weights' own."""
        self.head = head
        self.chunk_size = chunk_size
        self.dtype = dtype

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The summed loss of the hidden states."""
        tensors = [inputs.reshape(-1, inputs.shape[-1]), self.head.weight, self.head.bias]
        if not torch.is_grad_enabled():
            tensors = [tensor if tensor is None else tensor.detach() for tensor in tensors]
        dtype = self.dtype or self.head.weight.dtype
        apply: Callable[..., torch.Tensor] = _SummedCrossEntropy.apply
        return apply(*tensors, targets.reshape(-1), self.chunk_size, dtype)


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum over the tokens of -log softmax(hidden @ weight.T + bias)[target], in nats.

    The sum and not the mean: its gradients with respect to the logits lie between -1 and 1, which suits float16.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        chunk_size: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(tensor) if tensor is not None and needed else None
            for tensor, needed in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        )
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        matrix, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
        for start in chunk_starts(len(hidden), chunk_size):
            rows = hidden[start : start + chunk_size].to(dtype)
            target = targets[start : start + chunk_size, None]
            counted = target != IGNORE_INDEX
            target = target.where(counted, 0)
            # In place from here on: one (chunk, vocabulary) tensor is first logits, then softmax, then gradient.
            logits = linear(rows, matrix, shift).float()
            logits -= logits.amax(-1, keepdim=True)
            of_target = logits.gather(1, target)
            logits.exp_()
            normalizer = logits.sum(-1, keepdim=True)
            total += ((normalizer.log() - of_target) * counted).sum()
            if of_hidden is None and of_weight is None and of_bias is None:
                continue
            logits /= normalizer
            logits.scatter_add_(1, target, torch.full_like(of_target, -1.0))
            logits *= counted
            slope = logits.to(dtype)
            if of_hidden is not None:
                of_hidden[start : start + chunk_size] = slope @ matrix
            if of_weight is not None and of_weight.dtype == dtype:
                of_weight.addmm_(slope.T, rows)
            elif of_weight is not None:
                of_weight += slope.T @ rows
            if of_bias is not None:
                of_bias += slope.sum(0)
        # Not through save_for_backward: these are gradients already, and no saved-tensor hook should offload them.
        ctx.gradients = (of_hidden, of_weight, of_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # so that autograd may keep them as .grad, without a copy
        return (*(None if gradient is None else gradient.mul_(outer) for gradient in gradients), None, None, None)
