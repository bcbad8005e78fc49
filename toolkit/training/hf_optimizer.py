"""Optimizers by their names in transformers, with which a memory strategy may replace the recipe's.

The Trainer builds them. This module adds the learning rates that a model asks for and, for those that project gradients
(GaLore, APOLLO), weight decay, the choice of target matrices, and loading their state from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from toolkit.api import Optimizer, learning_rate_scales
from toolkit.recipe.settings import Training

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainingArguments

PROJECTORS = {
    "galore_adamw": ("galore_torch.galore_projector", "GaLoreProjector"),
    "apollo_adamw": ("apollo_torch.random_projector", "GradientProjector"),
}
"""Optimizers that project the gradients of matrices, and the projector classes in their state."""


def build_named(
    build: Callable[[], torch.optim.Optimizer],
    *,
    settings: Training,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    replaced: Optimizer,
) -> torch.optim.Optimizer:
    """The optimizer named by `settings.optim`, with the recipe's learning rate, weight decay, betas and eps.

    Args:
        build: the Trainer's own `create_optimizer`.
        settings: the recipe's settings.
        arguments: the Trainer's, in which the optimizer's options are set.
        model: the model whose trainable parameters it steps.
        replaced: the recipe's optimizer, whose `betas` and `eps` are used if it has them.
    """
    assert settings.optim is not None
    arguments.optim = settings.optim
    arguments.optim_args = settings.optim_args
    arguments.adam_beta1, arguments.adam_beta2 = getattr(replaced, "betas", (0.9, 0.999))
    arguments.adam_epsilon = getattr(replaced, "eps", 1e-8)
    projects = settings.optim in PROJECTORS
    if projects:
        arguments.optim_target_modules = projected_matrices(model)
    optimizer = build()
    if projects:
        _group_by_decay(optimizer, settings.weight_decay)
        _allow_projectors(settings.optim)
    _group_by_learning_rate(optimizer, learning_rate_scales(model))
    return optimizer


def projected_matrices(model: PreTrainedModel) -> list[str]:
    """Names of the trainable Linear modules; neither the head nor GPT-2's Conv1D, whose weight is transposed."""
    import torch

    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and module.weight.requires_grad
    ]


def _group_by_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Apply weight decay to matrices and not to vectors, as our optimizers do; transformers decays nothing here."""
    groups, optimizer.param_groups = optimizer.param_groups, []
    for group in groups:
        trained = [parameter for parameter in group["params"] if parameter.requires_grad]
        for decay, matrices in ((weight_decay, True), (0.0, False)):
            if chosen := [parameter for parameter in trained if (parameter.ndim >= 2) == matrices]:
                optimizer.add_param_group({**group, "params": chosen, "weight_decay": decay})


def _group_by_learning_rate(optimizer: torch.optim.Optimizer, scales: Mapping[torch.nn.Parameter, float]) -> None:
    """Give parameters the learning rates that the model asks for, and the decay of `parameter_groups`."""
    groups, optimizer.param_groups = optimizer.param_groups, []
    for group in groups:
        of_scale: dict[float, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            of_scale.setdefault(scales.get(parameter, 1.0), []).append(parameter)
        for scale, chosen in of_scale.items():
            scaled = {"lr": group["lr"] * scale, "weight_decay": group["weight_decay"] / scale}
            optimizer.add_param_group({**group, **scaled, "params": chosen})


def _allow_projectors(name: str) -> None:
    """Allow torch.load to read this optimizer's projectors from a checkpoint: they hold numbers and a matrix."""
    import importlib

    import torch

    module, projector = PROJECTORS[name]
    torch.serialization.add_safe_globals([getattr(importlib.import_module(module), projector)])
