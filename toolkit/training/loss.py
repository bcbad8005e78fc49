"""The loss of a training step: the mean over the predicted tokens of the whole global batch.

The cross-entropy of the model's logits, or what a memory strategy computes from those or from the hidden states that
enter its head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import cross_entropy, linear, pad

from toolkit.api import VOCABULARY_MULTIPLE, Loss, OptionError, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORE_INDEX = -100
"""The label of a token that is not predicted: PyTorch's default `ignore_index`."""
DUMMY_INPUT_TOKENS = 8
"""Length of the dummy input that a model's head and loss are checked with."""


def summed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The sum over the tokens, computed in float32; logits (tokens, vocabulary), targets (tokens,)."""
    return cross_entropy(logits.float(), targets, reduction="sum")


def token_mean_loss(
    task: Task, summed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = summed_cross_entropy
) -> Callable[..., torch.Tensor]:
    """The mean loss per predicted token of the whole global batch, whatever the micro-batch size.

    Some models (BERT among them, transformers 5.23) average over their own micro-batch even when they are passed
    the number of tokens in the step; gradient accumulation would then change the numbers.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        targets = _targets(labels, task)
        total = summed(outputs.logits.flatten(0, 1), targets.flatten())
        return total / _divisor(targets, num_items_in_batch)

    return loss


class StepLoss:
    """The loss of a training step and of an evaluation, as the Trainer calls it: the mean per predicted token."""

    def __init__(
        self,
        model: PreTrainedModel,
        task: Task,
        loss: Loss | None,
        *,
        name: str,
        in_evaluation: bool,
        on_gpu: bool = False,
    ) -> None:
        """`loss`, of the strategy called `name`, replaces the cross-entropy of the logits, maybe `in_evaluation` too.

        `on_gpu`: the head's products in training are aligned for it.

        Raises:
            OptionError: it is computed from hidden states, and the model's logits are not its head's.
        """
        self.task: Task = task
        self.loss = loss
        self.in_evaluation = in_evaluation
        self.cross_entropy: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = summed_cross_entropy
        """The sum over the tokens of logits, (tokens, vocabulary), and targets, (tokens,)."""
        self._head = model.get_output_embeddings()
        self._aligns = (
            on_gpu and type(self._head) is torch.nn.Linear and len(self._head.weight) % VOCABULARY_MULTIPLE > 0
        )
        if loss and loss.inputs == "hidden_states":
            check_head(model, name)

    @contextlib.contextmanager
    def head_withheld(self) -> Iterator[None]:
        """If the loss is of hidden states, make the model return those, (batch, length, hidden), as its logits."""
        loss = self._current()
        forward = None
        if loss and loss.inputs == "hidden_states":
            forward = _unchanged
        elif self._aligns and torch.is_grad_enabled():
            forward = partial(_aligned, self._head)
        with replaced(self._head, forward) if forward else contextlib.nullcontext():
            yield

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The loss of what the model has returned inside `head_withheld`."""
        if not (loss := self._current()):
            return token_mean_loss(self.task, self.cross_entropy)(outputs, labels, num_items_in_batch)
        inputs = outputs.logits.float() if loss.inputs == "logits" else outputs.logits
        targets = _targets(labels, self.task)
        return loss.summed(inputs, targets) / _divisor(targets, num_items_in_batch)

    def _current(self) -> Loss | None:
        """The strategy's loss, where it applies; an evaluation is what computes no gradients."""
        return self.loss if self.in_evaluation or torch.is_grad_enabled() else None


@contextlib.contextmanager
def replaced(head: torch.nn.Linear, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Make the head compute this instead."""
    head.forward = forward  # type: ignore[assignment,method-assign]  # for this module alone, not its class
    try:
        yield
    finally:
        del head.forward


def plain_head(model: PreTrainedModel, name: str) -> torch.nn.Linear:
    """The model's head, for the loss of the strategy called `name`.

    Raises:
        OptionError: it is not a plain `torch.nn.Linear`.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        raise OptionError(
            f"{type(model).__name__} computes its logits by a {type(head).__name__}, and {name} knows how to compute "
            f"those of a plain Linear; remove {name}, or leave the head as it is"
        )
    return head


def check_head(model: PreTrainedModel, name: str) -> None:
    """Check that the logits are the head's output: some models cap them after it (Gemma) or scale them (Cohere).

    For the fake tensors of a plan, which have no values, both have to be the same tensor, or differ in dtype.

    Raises:
        OptionError: they are not, so that a loss of the hidden states would be a different one.
    """
    head = plain_head(model, name)
    tokens = torch.arange(DUMMY_INPUT_TOKENS, device=head.weight.device)[None] % cast(int, model.config.vocab_size)
    of_head: list[tuple[torch.Tensor, torch.Tensor]] = []

    def remember(_head: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        of_head.append((output, output.clone()))  # in case the model changes it in place

    was_training = model.training
    model.eval()
    with head.register_forward_hook(remember), torch.no_grad(), replaced(head, _unchanged):
        given = model(input_ids=tokens, use_cache=False).logits
    model.train(was_training)
    if not any(_is_same(given, *outputs) for outputs in of_head):
        raise OptionError(
            f"the logits of {type(model).__name__} are not those that its head gives (some models cap or scale them), "
            f"which {name} would not see; remove {name}"
        )


def _is_same(given: torch.Tensor, output: torch.Tensor, copy: torch.Tensor) -> bool:
    if isinstance(given, FakeTensor):
        return given is output or given.dtype != output.dtype
    return torch.equal(given.float(), copy.float())


def _unchanged(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def _aligned(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """The head's logits, by products with as many rows of zeros as make their number a multiple of 64."""
    weight, bias = head.weight, head.bias
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):  # here, so that the rows are added to the smaller copy
        weight = weight.to(torch.get_autocast_dtype(kind))
    rows = len(weight)
    beyond = -rows % VOCABULARY_MULTIPLE
    logits = linear(hidden, pad(weight, (0, 0, 0, beyond)), bias if bias is None else pad(bias, (0, beyond)))
    return logits[..., :rows]


def predicted_tokens(labels: torch.Tensor, task: Task) -> torch.Tensor:
    """Number of predicted tokens in a batch."""
    return (_targets(labels, task) != IGNORE_INDEX).sum()


def _targets(labels: torch.Tensor, task: Task) -> torch.Tensor:
    """The label that each output predicts, (batch, length): causal-lm predicts each token from those before it.

    There the last output of a block predicts nothing, and gets a label that is ignored. To leave the output away would
    copy all others, which are as wide as the vocabulary, and their gradient once more.
    """
    return pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX) if task == "causal-lm" else labels


def _divisor(targets: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
    """Number of predicted tokens, at least 1: without any, the loss is 0 instead of NaN."""
    tokens = (targets != IGNORE_INDEX).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
    return tokens.clamp(min=1).to(targets.device)
