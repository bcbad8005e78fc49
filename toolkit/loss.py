"""The loss of a training step: the mean over the predicted tokens of the whole global batch.

Two ways to the same number: from the model's logits, or from the hidden states that enter its head, a few tokens at
a time, so that no more logits than theirs are ever held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear

from toolkit.api import OptionError, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from toolkit.recipe.training import Training

IGNORED = -100
"""The label of a token that is not predicted, as everywhere in PyTorch."""
TRIED_TOKENS = 8
"""Length of the text that a model is tried with, to see whether its head can be withheld."""


def token_mean_loss(task: Task) -> Callable[..., torch.Tensor]:
    """The mean loss per predicted token of the whole global batch, whatever the micro-batch.

    Some models (BERT's among them, transformers 5.23) take the mean of their own micro-batch even when they are
    told the number of tokens in the step; then accumulation would change the numbers.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        flat, targets = _predictions(outputs.logits.float(), labels, task)
        total = cross_entropy(flat, targets, reduction="sum")
        return total / _divisor(targets, num_items_in_batch)

    return loss


class ChunkedLoss:
    """`token_mean_loss` with the logits of `chunk_size` tokens at a time, in training and in evaluation.

    GPT-2's logits take 200 KB a token, and the gradients as much again. Here the gradients are computed beside the
    loss, chunk by chunk, while the logits are there; what is kept is the gradient of the hidden states and that of
    the head's weight. Hsu et al. 2024 (Liger), https://arxiv.org/abs/2410.10989. The price: none in products of
    matrices, and one pass over the head's gradient per chunk.

    Why not `torch.nn.functional.linear_cross_entropy` (2.13): it is not in every version of torch that we support,
    and left to choose its own chunks it takes as much memory as the plain loss does for one sequence of 1024 tokens.
    """

    def __init__(self, model: PreTrainedModel, task: Task, *, chunk_size: int, dtype: torch.dtype | None) -> None:
        """`dtype` is that of the products, if not the weights' own.

        Raises:
            OptionError: the model's head is not a plain linear map.
        """
        head = model.get_output_embeddings()
        if type(head) is not torch.nn.Linear:
            raise OptionError(
                f"{type(model).__name__} computes its logits by a {type(head).__name__}, and chunked-loss knows how to "
                f"compute those of a plain Linear; remove chunked-loss, or leave the head as it is"
            )
        self.task: Task = task
        self.head = head
        self.chunk_size = chunk_size
        self.dtype = dtype

    @contextlib.contextmanager
    def head_withheld(self) -> Iterator[None]:
        """Let the model give the hidden states that would enter its head, (batch, length, hidden), as its logits."""
        self.head.forward = _unchanged  # type: ignore[assignment,method-assign]
        try:
            yield
        finally:
            del self.head.forward

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The loss of what the model gave while its head was withheld."""
        hidden, targets = _predictions(outputs.logits, labels, self.task)
        inputs = [hidden, self.head.weight, self.head.bias]
        if not torch.is_grad_enabled():
            inputs = [tensor if tensor is None else tensor.detach() for tensor in inputs]
        dtype = self.dtype or self.head.weight.dtype
        apply: Callable[..., torch.Tensor] = _SummedCrossEntropy.apply
        total = apply(*inputs, targets, self.chunk_size, dtype)
        return total / _divisor(targets, num_items_in_batch)


def loss_for(model: PreTrainedModel, task: Task, training: Training) -> Callable[..., torch.Tensor]:
    """The loss that the settings ask for.

    Raises:
        OptionError: it is to be computed in chunks, and the model's head is not a plain linear map.
    """
    if training.loss_chunk_size is None:
        return token_mean_loss(task)
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[training.precision]
    return ChunkedLoss(model, task, chunk_size=training.loss_chunk_size, dtype=dtype)


def check_head(model: PreTrainedModel, loss: ChunkedLoss) -> None:
    """Try whether the logits are what the head gives: some models cap them after it (Gemma) or scale them (Cohere).

    Of the fake tensors of a plan, which have no values, it asks that the head's be the model's.

    Raises:
        OptionError: they are not, so that the loss in chunks would be another.
    """
    tokens = torch.arange(TRIED_TOKENS, device=loss.head.weight.device)[None] % cast(int, model.config.vocab_size)
    of_head: list[tuple[torch.Tensor, torch.Tensor]] = []

    def remember(_head: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        of_head.append((output, output.clone()))  # should the model change it in place

    was_training = model.training
    model.eval()
    with loss.head.register_forward_hook(remember), torch.no_grad(), loss.head_withheld():
        given = model(input_ids=tokens, use_cache=False).logits
    model.train(was_training)
    if not any(_is_same(given, *outputs) for outputs in of_head):
        raise OptionError(
            f"the logits of {type(model).__name__} are not those that its head gives (some models cap or scale them), "
            f"which chunked-loss would not see; remove chunked-loss"
        )


def _is_same(given: torch.Tensor, output: torch.Tensor, copy: torch.Tensor) -> bool:
    if isinstance(given, FakeTensor):
        return given is output or given.dtype != output.dtype
    return torch.equal(given.float(), copy.float())


def _unchanged(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def predicted_tokens(labels: torch.Tensor, task: Task) -> torch.Tensor:
    """How many tokens of a batch are predicted."""
    return (_targets(labels, task) != IGNORED).sum()


def _predictions(outputs: torch.Tensor, labels: torch.Tensor, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """What is predicted from, (tokens, features), and the labels, (tokens,)."""
    if task == "causal-lm":
        outputs = outputs[:, :-1]
    return outputs.reshape(-1, outputs.shape[-1]), _targets(labels, task).reshape(-1)


def _targets(labels: torch.Tensor, task: Task) -> torch.Tensor:
    """What is predicted: for causal-lm each token from those before it, so not the first."""
    return labels[:, 1:] if task == "causal-lm" else labels


def _divisor(targets: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
    """How many tokens are predicted; 1 where none is, whose loss is 0, and would be no number."""
    tokens = (targets != IGNORED).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
    return tokens.clamp(min=1).to(targets.device)


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum over the tokens of -log softmax(hidden @ weight.T + bias)[target], in nats.

    The sum and not the mean: its gradients in the logits lie between -1 and 1, which float16 can hold.
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
        for start in range(0, len(hidden), chunk_size):
            rows = hidden[start : start + chunk_size].to(dtype)
            target = targets[start : start + chunk_size, None]
            counted = target != IGNORED
            target = target.where(counted, 0)
            # In place from here on: the one tensor of (chunk, vocabulary) is first logits, then softmax, then gradient.
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
        # Not saved as tensors of the graph: they are its gradients already, and no hook should move them.
        ctx.gradients = (of_hidden, of_weight, of_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # so that autograd may keep them as .grad, without a copy
        return (*(None if gradient is None else gradient.mul_(outer) for gradient in gradients), None, None, None)
