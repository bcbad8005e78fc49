"""Learning rates of single parameters: a model asks for them, an optimizer grants them by its parameter groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ATTRIBUTE = "learning_rate_scales"


def scale_learning_rate(module: torch.nn.Module, parameter: str, scale: float) -> None:
    """Let a parameter of this module learn at `scale` times the recipe's learning rate.

    For a model's `build`. The scale is meant for Adam and its like, whose updates do not grow with the gradient.

    Args:
        module: the module whose own parameter it is.
        parameter: its name in the module, such as `weight`.
        scale: positive; 1 is the recipe's rate.
    """
    # On the module and not on the parameter: a copy, a sharded or a quantized model has new parameters.
    module.__dict__.setdefault(_ATTRIBUTE, {})[parameter] = scale


def learning_rate_scales(model: torch.nn.Module) -> dict[torch.nn.Parameter, float]:
    """The scale of every parameter of the model that requires a gradient; 1 where the model has asked for nothing."""
    scales = {parameter: 1.0 for parameter in model.parameters() if parameter.requires_grad}
    for module in model.modules():
        for name, scale in getattr(module, _ATTRIBUTE, {}).items():
            if (parameter := getattr(module, name)) in scales:
                scales[parameter] = scale
    return scales


def parameter_groups(
    model: torch.nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    parameters: Iterable[torch.nn.Parameter] | None = None,
) -> list[dict[str, Any]]:
    """The parameter groups for Adam and its like: vectors are not decayed, and each group has its learning rate.

    A scaled learning rate comes with a weight decay divided by the scale, so that a step shrinks every matrix by
    `learning_rate * weight_decay`, whatever the scale: the decay that is best for a small model is then best for a wide
    one (Wang and Aitchison 2024, https://arxiv.org/abs/2405.13698).

    Args:
        model: its parameters that require a gradient are grouped, in their order.
        learning_rate: the recipe's.
        weight_decay: the recipe's.
        parameters: only these of them; all if not given.

    Returns:
        Groups with `params`, `lr` and `weight_decay`, none of them empty; matrices first.
    """
    scales = learning_rate_scales(model)
    wanted = set(scales if parameters is None else parameters)
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter in scales and parameter in wanted:
            groups.setdefault((parameter.ndim < 2, scales[parameter]), []).append(parameter)
    return [
        {"params": group, "lr": learning_rate * scale, "weight_decay": 0.0 if is_vector else weight_decay / scale}
        for (is_vector, scale), group in sorted(groups.items(), key=lambda item: item[0][0])
    ]
