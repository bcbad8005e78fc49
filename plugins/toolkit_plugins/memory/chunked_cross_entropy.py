"""The cross-entropy in chunks of tokens, so that only one chunk's logits exist at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear

from toolkit.api import VOCABULARY_MULTIPLE, chunk_starts

IGNORE_INDEX = -100
"""The label of a token that is not predicted."""


def probabilities(logits: torch.Tensor, counted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The softmax of each row that is counted, else zeros, in the dtype of the logits, which may be overwritten.

    With it, (tokens, 1) each, the largest logit and the sum of exp(logit - largest) in float32.
    """
    # In place: one float32 tensor is first logits, then softmax.
    scores = logits.float()
    largest = scores.amax(-1, keepdim=True)
    scores -= largest
    scores.exp_()
    normalizer = scores.sum(-1, keepdim=True)
    scores *= counted / normalizer
    return scores.to(logits.dtype), largest, normalizer


def probabilities_of_copy(
    logits: torch.Tensor, counted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same for torch.compile, which makes no copy, and fails (torch 2.13) where an input is overwritten."""
    return probabilities(logits.clone(), counted)


def add(total: torch.Tensor, part: torch.Tensor) -> None:
    """Add to a sum in its own precision."""
    total += part


class Kernels(NamedTuple):
    """What torch.compile fuses: every pass over the logits, and the sum of the head's gradients.

    They look at no column by its number: its comparison, in int64, makes the compiled passes over GPT-2's logits four
    times as long on a CPU.
    """

    probabilities: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    add: Callable[[torch.Tensor, torch.Tensor], None]


KERNELS = Kernels(probabilities, add)


def compiled_kernels() -> Kernels:
    """The same, compiled when they are first called."""
    return Kernels(torch.compile(probabilities_of_copy, dynamic=False), torch.compile(add, dynamic=False))


def loss_and_slope(
    logits: torch.Tensor, targets: torch.Tensor, vocabulary: int, kernels: Kernels
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed cross-entropy, and its gradient with respect to the logits, in their dtype.

    Logits (tokens, vocabulary or more), which may be overwritten; targets (tokens, 1). What is beyond the vocabulary
    has no probability.
    """
    counted = targets != IGNORE_INDEX
    targets = targets.where(counted, 0)
    logits[:, vocabulary:] = -torch.inf
    of_target = logits.gather(1, targets).float()
    slope, largest, normalizer = kernels.probabilities(logits, counted)
    of_target -= largest
    # Not by scatter_: in bfloat16 a CPU would copy all of the slope there and back.
    tokens = torch.arange(len(targets), device=targets.device)[:, None]
    slope[tokens, targets] = ((of_target.exp() / normalizer - 1) * counted).to(slope.dtype)
    return ((normalizer.log() - of_target) * counted).sum(), slope


class ChunkedCrossEntropy:
    """The cross-entropy with the logits of `chunk_size` tokens at a time, in training and in evaluation.

    GPT-2's logits take 200 KB per token, and their gradients as much again. Here the gradients are computed in the
    forward pass, chunk by chunk, while the logits exist; only the gradients of the hidden states and of the head's
    weight are kept. Hsu et al. 2024 (Liger), https://arxiv.org/abs/2410.10989. The price: no extra matrix products,
    but one pass over the head's gradient per chunk.

    Why not `torch.nn.functional.linear_cross_entropy` (2.13): it is not in every version of torch that we support,
    and with its default chunks it takes as much memory as the plain loss for one sequence of 1024 tokens.
    """

    def __init__(
        self,
        head: torch.nn.Linear,
        *,
        chunk_size: int,
        dtype: torch.dtype | None,
        on_gpu: bool = False,
        compiled: bool = False,
    ) -> None:
        """`dtype` is that of the matrix products, if not the weights' own.

        The weights are copied for products in another type, so that rows beyond the vocabulary cost nothing; `on_gpu`
        they are worth a copy in every case.
        """
        self.head = head
        self.chunk_size = chunk_size
        self.dtype = dtype or head.weight.dtype
        self.rows_beyond = -len(head.weight) % VOCABULARY_MULTIPLE if on_gpu or self.dtype != head.weight.dtype else 0
        self.kernels = compiled_kernels() if compiled else KERNELS

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The summed loss of the hidden states."""
        tensors = [inputs.reshape(-1, inputs.shape[-1]), self.head.weight, self.head.bias]
        if not torch.is_grad_enabled():
            tensors = [tensor if tensor is None else tensor.detach() for tensor in tensors]
        apply: Callable[..., torch.Tensor] = _SummedCrossEntropy.apply
        return apply(*tensors, targets.reshape(-1), self.chunk_size, self.dtype, self.rows_beyond, self.kernels)


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
        rows_beyond: int,
        kernels: Kernels,
    ) -> torch.Tensor:
        vocabulary = len(weight)
        matrix = _filled_up(weight, rows_beyond, dtype)
        shift = None if bias is None else _filled_up(bias, rows_beyond, dtype)
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(used, dtype=tensor.dtype) if tensor is not None and used is not None and needed else None
            for tensor, used, needed in zip(
                (hidden, weight, bias), (hidden, matrix, shift), ctx.needs_input_grad[:3], strict=True
            )
        )
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in chunk_starts(len(hidden), chunk_size):
            rows = hidden[start : start + chunk_size].to(dtype)
            target = targets[start : start + chunk_size]
            logits = linear(rows, matrix, shift)
            if of_hidden is None and of_weight is None and of_bias is None:
                total += cross_entropy(logits[:, :vocabulary].float(), target, reduction="sum")
                continue
            loss, slope = loss_and_slope(logits, target[:, None], vocabulary, kernels)
            total += loss
            if of_hidden is not None:
                of_hidden[start : start + chunk_size] = slope @ matrix
            if of_weight is not None and of_weight.dtype == dtype:
                of_weight.addmm_(slope.T, rows)
            elif of_weight is not None:
                kernels.add(of_weight, slope.T @ rows)
            if of_bias is not None:
                of_bias += slope.sum(0)
        # Not through save_for_backward: these are gradients already, and no saved-tensor hook should offload them.
        ctx.gradients = (of_hidden, *(each if each is None else each[:vocabulary] for each in (of_weight, of_bias)))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # so that autograd may keep them as .grad, without a copy
        scaled = (None if gradient is None else gradient.mul_(outer) for gradient in gradients)
        return (*scaled, None, None, None, None, None)


def _filled_up(tensor: torch.Tensor, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in this type, with so many rows of zeros after its own."""
    if not rows:
        return tensor.to(dtype)
    filled = tensor.new_zeros((len(tensor) + rows, *tensor.shape[1:]), dtype=dtype)
    filled[: len(tensor)] = tensor
    return filled
