"""An exponential moving average of the weights, which is what a run evaluates, saves and exports.

The average lives in the optimizer's state: so a checkpoint holds it, a plan counts it, and a resume continues it to the
bit. Why it pays: docs/learning-sooner.md.
"""

from __future__ import annotations

from typing import Any

import torch

from toolkit.errors import UsageError

AVERAGE, STEPS, TRAINED = "ema", "ema_steps", "trained_weights"
"""Keys of a parameter's state: its average, over how many steps, and in evaluation mode the weights themselves."""


class AveragingOptimizer(torch.optim.Optimizer):
    """An optimizer that averages the weights after each of its steps.

    The average is a power-function EMA, whose width is a share of the steps taken: unlike a fixed decay, it fits a run
    of any length and forgets the random weights at its beginning. Karras and others 2024, section 3,
    https://arxiv.org/abs/2312.02696.

    `eval()` puts the averages into the model and `train()` the weights back, as with a schedule-free optimizer; the
    Trainer calls `train()` before each forward pass.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, width: float) -> None:
        """`width`: standard deviation of the averaged steps, as a share of all steps so far.

        Raises:
            UsageError: weights are kept in less than float32, in which a slow average stands still.
        """
        super().__init__(optimizer.param_groups, optimizer.defaults)
        if any(parameter.dtype.itemsize < 4 for parameter in self._parameters()):
            raise UsageError(
                "training.ema_width needs weights in float32; remove it, or the strategy that changes their dtype"
            )
        self.optimizer = optimizer
        self.state = optimizer.state
        self.exponent = exponent_of(width)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, which the inner optimizer knows how to read."""
        self.optimizer.load_state_dict(state_dict)
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take the step, and average the weights that it moved."""
        loss = self.optimizer.step(closure)
        for parameter in self._parameters():
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            state[STEPS] = state.get(STEPS, 0) + 1
            if AVERAGE not in state:
                state[AVERAGE] = parameter.detach().clone()
            state[AVERAGE].lerp_(parameter, 1 - (1 - 1 / state[STEPS]) ** self.exponent)
        return loss

    @torch.no_grad()
    def eval(self) -> None:
        """Put the averages into the model."""
        for parameter in self._parameters():
            state = self.state.get(parameter, {})
            if AVERAGE in state and TRAINED not in state:
                state[TRAINED] = parameter.detach().clone()
                parameter.copy_(state[AVERAGE])

    @torch.no_grad()
    def train(self) -> None:
        """Put the weights back."""
        for parameter in self._parameters():
            state = self.state.get(parameter, {})
            if TRAINED in state:
                parameter.copy_(state.pop(TRAINED))

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def exponent_of(width: float) -> float:
    """The exponent e of the decay (1 - 1/t)^e at step t that gives an average of this width (Karras, equation 123)."""
    import numpy

    inverse = width**-2
    return float(numpy.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()) + 1
