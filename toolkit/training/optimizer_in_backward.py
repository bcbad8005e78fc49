"""Optimizer step in backward: steps each parameter as soon as its gradient is complete, and frees the gradient.

Gradients take as much memory as the weights. If nothing needs all of them together, each can be freed as soon as its
parameter has been stepped; then two or three exist at a time. Lv et al. 2023 (LOMO), https://arxiv.org/abs/2306.09782.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class OptimizerInBackward:
    """Post-accumulate-grad hooks on a model's parameters that step a single optimizer once per parameter.

    An optimizer skips parameters without a gradient, and only one has a gradient at a time: so the ordinary optimizer
    takes its step parameter by parameter, and its state, as saved and loaded, is that of an ordinary run.
    """

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, check: Callable[[torch.Tensor], None]
    ) -> None:
        """`check` gets the norm of each gradient before its step, and raises if that would spoil the weights."""
        self.optimizer = optimizer
        self.check = check
        self.left_out = False
        """Whether the next backward pass skips its steps."""
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._norms: dict[torch.Tensor, torch.Tensor] = {}
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._release)

    def _release(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        norm = torch.linalg.vector_norm(parameter.grad)
        self.check(norm)
        self._norms[parameter] = norm
        if not self.left_out:
            self.optimizer.step()
        parameter.grad = None

    def norm(self) -> torch.Tensor:
        """The total norm of the step's gradients, which are already freed."""
        # In parameter order, as in torch, so that even the last digit is that of an ordinary run.
        norms = [self._norms.pop(parameter) for parameter in self._parameters if parameter in self._norms]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)
