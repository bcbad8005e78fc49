"""The memory strategies at work: on the model, the loss and the optimizer. torch is imported in the functions only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from toolkit.api import OptionError, RunContext, Strategy
from toolkit.errors import PluginError
from toolkit.recipe.resolve import ResolvedRecipe
from toolkit.recipe.schema import Recipe, StrategyComponent
from toolkit.training.refusals import refusals_placed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from toolkit.training.loss import StepLoss

STRATEGY_PHASES = ("weights", "adapters", "activations")
"""The order in which memory strategies are applied to the model."""


def with_strategies(resolved: ResolvedRecipe, model: PreTrainedModel, context: RunContext) -> PreTrainedModel:
    """Apply the memory strategies phase by phase, then gradient checkpointing if it is on."""
    from toolkit.training.without_effect import Watched

    recipe = resolved.recipe
    watched = Watched.of(model, context.task)
    for part in _overriding(recipe, "apply"):
        with refusals_placed(recipe, part.path):
            model = part.plugin.apply(model, context)
            watched = watched.then(model, context.task, name=part.name)
    if resolved.training.gradient_checkpointing:
        checkpoint_layers(model, every=resolved.training.gradient_checkpointing_every)
    return model


def _overriding(recipe: Recipe, method: str) -> list[StrategyComponent]:
    """The memory strategies that define this method: phase by phase, and in each by name."""
    found = (part for part in recipe.memory if getattr(type(part.plugin), method) is not getattr(Strategy, method))
    return sorted(found, key=lambda part: (STRATEGY_PHASES.index(part.plugin.phase), part.name))


def checkpoint_layers(model: PreTrainedModel, *, every: int) -> None:
    """Enable gradient checkpointing on every `every`-th layer."""
    from toolkit.training.compilation import repeated_layers

    # Not through TrainingArguments: its name for this changed within the versions we support.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    for number, layer in enumerate(repeated_layers(model)):
        layer.gradient_checkpointing = number % every == 0


def checked_loss(recipe: Recipe, model: PreTrainedModel, context: RunContext) -> StepLoss:
    """The loss that a memory strategy returns, or the cross-entropy, checked against the model.

    Raises:
        RecipeError: there are two, or the model is not one that it can be computed for.
    """
    from toolkit.training.loss import StepLoss

    on_gpu = context.device.kind == "cuda"
    step_loss, name = StepLoss(model, context.task, None, name="", in_evaluation=True, on_gpu=on_gpu), ""
    for part in _overriding(recipe, "loss"):
        with refusals_placed(recipe, part.path):
            if not (loss := part.plugin.loss(model, context)):
                continue
            if name:
                raise OptionError(f"{name} sets the loss, too; remove one of the two")
            name, is_exact = part.name, part.plugin.fidelity == "exact"
            step_loss = StepLoss(model, context.task, loss, name=name, in_evaluation=is_exact, on_gpu=on_gpu)
    return step_loss


def optimizer_wrapper(
    recipe: Recipe, model: PreTrainedModel, context: RunContext
) -> Callable[[torch.optim.Optimizer], torch.optim.Optimizer]:
    """The memory strategies' wrappers of the optimizer, as one function.

    Raises:
        RecipeError: when called, if the optimizer ignores the model's learning rates, or if a strategy refuses, or
            returns something that is no optimizer of these parameters.
    """

    def wrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        from toolkit.training.without_effect import check_learning_rates

        with refusals_placed(recipe, ("optimizer",)):
            check_learning_rates(optimizer, model)
        for part in _overriding(recipe, "wrap_optimizer"):
            with refusals_placed(recipe, part.path):
                optimizer = check_wrapper(part.plugin.wrap_optimizer(optimizer, model, context), of=optimizer)
        return optimizer

    return wrapped


def check_wrapper(wrapper: torch.optim.Optimizer, *, of: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return a strategy's wrapper.

    Raises:
        PluginError: it is no optimizer, or not one of the parameters that it was given.
    """
    import torch

    if not isinstance(wrapper, torch.optim.Optimizer):
        raise PluginError(f"its wrap_optimizer returns a {type(wrapper).__name__}, not a torch.optim.Optimizer")
    inner, outer = ([id(one) for group in each.param_groups for one in group["params"]] for each in (of, wrapper))
    if inner != outer:
        raise PluginError("the optimizer that its wrap_optimizer returns has other parameters than the one it is given")
    return wrapper
