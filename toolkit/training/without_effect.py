"""Refuses what a plugin sets but a run would ignore, so that nothing is silently without effect.

A run computes the loss from the logits itself (`toolkit.training.loss`), so that gradient accumulation, world size
and chunking do not change it. A loss function that a plugin sets on the model, or a term that the model adds to its
own loss, never reaches the gradients. Nor does a batch entry that the model's forward does not take: transformers
passes unknown ones on to that loss. And a model's learning rates are for the optimizer to grant.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers.loss.loss_utils import LOSS_MAPPING

from toolkit.api import OptionError, Task, learning_rate_scales
from toolkit.system.rng_state import random_state_preserved
from toolkit.training.loss import DUMMY_INPUT_TOKENS, token_mean_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOSS_TOLERANCE = {torch.float32: 2e-6}
"""Relative tolerance of a loss. Of 155 tiny models in transformers 5.23, 143 agree to 1e-6 in float32; the others are
encoder-decoders, or do not predict the next token."""
LOSS_TOLERANCE_16_BIT = 2e-2


def loss_function_of(model: torch.nn.Module) -> Any:
    """The function with which a transformers model computes its own loss."""
    # Not the property alone: it warns about classes whose name does not determine their loss, and assigning a module
    # to it bypasses its setter.
    own = {**vars(model), **model._modules}
    given = own.get("loss_function") or getattr(model, "_loss_function", None)
    return given or LOSS_MAPPING.get(str(getattr(model, "loss_type", None)), LOSS_MAPPING["ForCausalLM"])


def check_loss_function(before: Any, model: torch.nn.Module, who: str) -> None:
    """Refuse a loss function other than the one before.

    Raises:
        OptionError: `who` has set one.
    """
    if (function := loss_function_of(model)) != before:
        name = getattr(function, "__qualname__", type(function).__qualname__)
        raise OptionError(_in_vain(f"the model's loss_function, which {who} sets to {name},"))


def added_loss(model: PreTrainedModel, task: Task) -> float:
    """By how many nats the model's own loss differs from the cross-entropy of its logits; 0 within rounding.

    Takes one pass over a short dummy text, with the model in training mode. Also 0 if it computes no loss, and for the
    fake tensors of a plan.
    """
    if isinstance(next(model.parameters()), FakeTensor) or not takes(model, "labels"):
        return 0.0
    device = cast(torch.Tensor, model.get_input_embeddings().weight).device
    tokens = torch.arange(DUMMY_INPUT_TOKENS, device=device)[None] % cast(int, model.config.vocab_size)
    modes = {module: module.training for module in model.modules()}
    model.train()
    with random_state_preserved(), torch.no_grad():
        outputs = model(input_ids=tokens, labels=tokens.clone(), use_cache=False)
        own = getattr(outputs, "loss", None)
        expected = float(token_mean_loss(task)(outputs, tokens))
    for module, training in modes.items():
        module.training = training
    difference = 0.0 if own is None else float(own) - expected
    return (
        difference
        if abs(difference) > LOSS_TOLERANCE.get(outputs.logits.dtype, LOSS_TOLERANCE_16_BIT) * expected
        else 0.0
    )


def check_built(model: PreTrainedModel, task: Task) -> str | None:
    """Check a newly built model for a loss of its own; return a message about one that transformers itself adds.

    Raises:
        OptionError: the plugin has given it a loss of its own.
    """
    if loss_function_of(model) not in LOSS_MAPPING.values():
        check_loss_function(None, model, "the plugin")
    if not (added := added_loss(model, task)):
        return None
    what = f"what {type(model).__name__} adds to it by itself ({added:+.3g} nats in a trial"
    if not type(model).__module__.startswith("transformers.") or "forward" in vars(model):
        raise OptionError(_in_vain(f"{what})"))
    router = "; output_router_logits is true" if getattr(model.config, "output_router_logits", False) else ""
    return _in_vain(f"{what}{router})").replace("would have", "has")


@dataclass(frozen=True)
class Watched:
    """The parts of a model that a memory strategy might change in vain, at one moment."""

    loss_function: Any
    added: float
    """Result of `added_loss`."""
    training: frozenset[torch.nn.Module]
    """The modules in training mode."""

    @classmethod
    def of(cls, model: PreTrainedModel, task: Task) -> Watched:
        """Of the model as it is now."""
        training = frozenset(module for module in model.modules() if module.training)
        return cls(loss_function_of(model), added_loss(model, task), training)

    def then(self, model: PreTrainedModel, task: Task, *, name: str) -> Watched:
        """The same after the strategy of this name was applied.

        Raises:
            OptionError: it has changed how the model computes its own loss, or put a module into evaluation mode.
        """
        check_loss_function(self.loss_function, model, name)
        now = Watched.of(model, task)
        if now.added and not self.added:
            raise OptionError(_in_vain(f"what {name} adds to the model's own ({now.added:+.3g} nats in a trial)"))
        if still := [module for module in self.training if not module.training]:
            raise OptionError(
                f"every step puts the model into training mode, so the evaluation mode in which {name} leaves its "
                f"{type(still[0]).__name__} would have no effect; set its dropout to 0, say"
            )
        return now


def check_batch(batch: Mapping[str, Any], model: PreTrainedModel) -> None:
    """Refuse a batch of which the model would ignore a part.

    Raises:
        OptionError: it has an entry that the model's forward does not take, or not exactly one label per token.
    """
    if unknown := [key for key in batch if not takes(model, key)]:
        raise OptionError(
            f"the batch has {', '.join(unknown)}, which the forward of {type(model).__name__} does not take and the "
            f"loss does not look at, so it would have no effect; what is not to be learned gets the label -100"
        )
    shapes = {key: tuple(batch[key].shape) for key in ("input_ids", "labels")}
    if shapes["input_ids"] != shapes["labels"]:
        raise OptionError(
            f"labels have the shape {shapes['labels']} and input_ids {shapes['input_ids']}; a token has one label"
        )


def check_learning_rates(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    """Refuse an optimizer that ignores the model's learning rates: with one group for parameters of different scales.

    An optimizer may have reasons of its own for the rate of a group (Muon's does not depend on the width).

    Raises:
        OptionError: it has such a group.
    """
    scales = learning_rate_scales(model)
    for group in optimizer.param_groups:
        if len({scales.get(parameter, 1.0) for parameter in group["params"]}) > 1:
            raise OptionError(
                "the model asks for a learning rate of their own for some of its parameters (muP), which this "
                "optimizer would ignore; take adamw or muon, or let it take its groups from parameter_groups of "
                "toolkit.api"
            )


def takes(model: torch.nn.Module, key: str) -> bool:
    """Whether a forward of the model's classes names this key; what goes into `**kwargs` only reaches its own loss."""
    base = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    forwards = [vars(owner)["forward"] for owner in type(base).__mro__ if "forward" in vars(owner)]
    named = {name for forward in forwards for name in inspect.signature(forward).parameters}
    return key in named or "input_ids" not in named


def _in_vain(what: str) -> str:
    return f"the loss is computed by the toolkit from the logits, so {what} would have no effect"
