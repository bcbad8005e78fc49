"""Steps the optimizer inside the backward pass, and frees each gradient at once.

Gradients take as much memory as the weights. If nothing needs them all together, each can go as soon as its parameter
has been stepped; then there are two or three at a time. Lv et al. 2023 (LOMO), https://arxiv.org/abs/2306.09782.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class ReleasedGradients:
    """Hooks on a model's parameters that step one optimizer for each of them.

    An optimizer leaves alone what has no gradient, and at any time one parameter has one: so the optimizer of the plain
    run takes its step parameter by parameter, and its state, saved and loaded, is the plain run's.
    """

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, check: Callable[[torch.Tensor], None]
    ) -> None:
        """`check` is called with the norm of each gradient before its step, and raises if that would spoil weights."""
        self.optimizer = optimizer
        self.check = check
        self.left_out = False
        """Whether the next backward pass takes no step."""
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
        """The norm of all gradients of the step, which are gone."""
        # In the parameters' order, as torch has it, so that the last digit is the plain run's.
        norms = [self._norms.pop(parameter) for parameter in self._parameters if parameter in self._norms]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)
