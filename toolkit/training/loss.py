"""The loss of a training step: the mean over the predicted tokens of the whole global batch.

Computed in one of two ways: from the model's logits, or from the hidden states that enter its head, in chunks of
tokens, so that only one chunk's logits exist at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear

from toolkit.api import OptionError, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from toolkit.recipe.settings import Training

IGNORE_INDEX = -100
"""The label of a token that is not predicted: PyTorch's default `ignore_index`."""
DUMMY_INPUT_TOKENS = 8
"""Length of the dummy input that a model's head and loss are checked with."""


def token_mean_loss(task: Task) -> Callable[..., torch.Tensor]:
    """The mean loss per predicted token of the whole global batch, whatever the micro-batch size.

    Some models (BERT among them, transformers 5.23) average over their own micro-batch even when they are passed
    the number of tokens in the step; gradient accumulation would then change the numbers.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        flat, targets = _predictions(outputs.logits.float(), labels, task)
        total = cross_entropy(flat, targets, reduction="sum")
        return total / _divisor(targets, num_items_in_batch)

    return loss


class ChunkedCrossEntropy:
    """`token_mean_loss` with the logits of `chunk_size` tokens at a time, in training and in evaluation.

    GPT-2's logits take 200 KB per token, and their gradients as much again. Here the gradients are computed in the
    forward pass, chunk by chunk, while the logits exist; only the gradients of the hidden states and of the head's
    weight are kept. Hsu et al. 2024 (Liger), https://arxiv.org/abs/2410.10989. The price: no extra matrix products,
    but one pass over the head's gradient per chunk.

    Why not `torch.nn.functional.linear_cross_entropy` (2.13): it is not in every version of torch that we support,
    and with its default chunks it takes as much memory as the plain loss for one sequence of 1024 tokens.
    """

    def __init__(self, model: PreTrainedModel, task: Task, *, chunk_size: int, dtype: torch.dtype | None) -> None:
        """`dtype` is that of the matrix products, if not the weights' own.

        Raises:
            OptionError: the model's head is not a plain `torch.nn.Linear`.
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
        """Make the model return the hidden states that would enter its head, (batch, length, hidden), as its logits."""
        self.head.forward = _unchanged  # type: ignore[assignment,method-assign]
        try:
            yield
        finally:
            del self.head.forward

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The loss of the hidden states that the model returned while its head was withheld."""
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
        OptionError: it is to be computed in chunks, and the model's head is not a plain `torch.nn.Linear`.
    """
    if training.loss_chunk_size is None:
        return token_mean_loss(task)
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[training.precision]
    return ChunkedCrossEntropy(model, task, chunk_size=training.loss_chunk_size, dtype=dtype)


def check_head(model: PreTrainedModel, loss: ChunkedCrossEntropy) -> None:
    """Check that the logits are the head's output: some models cap them after it (Gemma) or scale them (Cohere).

    For the fake tensors of a plan, which have no values, both have to be the same tensor, or differ in dtype.

    Raises:
        OptionError: they are not, so that the chunked loss would be a different one.
    """
    tokens = torch.arange(DUMMY_INPUT_TOKENS, device=loss.head.weight.device)[None] % cast(int, model.config.vocab_size)
    of_head: list[tuple[torch.Tensor, torch.Tensor]] = []

    def remember(_head: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        of_head.append((output, output.clone()))  # in case the model changes it in place

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
    """Number of predicted tokens in a batch."""
    return (_targets(labels, task) != IGNORE_INDEX).sum()


def _predictions(outputs: torch.Tensor, labels: torch.Tensor, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs to predict from, (tokens, features), and their labels, (tokens,)."""
    if task == "causal-lm":
        outputs = outputs[:, :-1]
    return outputs.reshape(-1, outputs.shape[-1]), _targets(labels, task).reshape(-1)


def _targets(labels: torch.Tensor, task: Task) -> torch.Tensor:
    """The labels to predict: causal-lm predicts each token from those before it, so all but the first."""
    return labels[:, 1:] if task == "causal-lm" else labels


def _divisor(targets: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
    """Number of predicted tokens, at least 1: without any, the loss is 0 instead of NaN."""
    tokens = (targets != IGNORE_INDEX).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
    return tokens.clamp(min=1).to(targets.device)


def chunk_starts(tokens: int, chunk_size: int) -> Iterable[int]:
    """The first token of each chunk. A plan replaces this (`planning.kernels`): chunks of one length are alike."""
    return range(0, tokens, chunk_size)


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
