"""A Trainer whose steps are judged by the loss guard before the optimizer takes them."""

from __future__ import annotations

from typing import Any

import torch

from toolkit.training.loss_guard import LossGuard
from toolkit.training.optimizer_in_backward import OptimizerInBackward
from toolkit.training.undisturbed_training import UndisturbedTrainer


class GuardedTrainer(UndisturbedTrainer):
    """A Trainer that logs and evaluates no step that the guard has not judged."""

    def __init__(self, *, guard: LossGuard, **of_the_trainer: Any) -> None:
        super().__init__(**of_the_trainer)
        self.guard = guard
        self.released: OptimizerInBackward | None = None

    def guarded(
        self, optimizer: torch.optim.Optimizer, model: torch.nn.Module, *, in_backward: bool
    ) -> torch.optim.Optimizer:
        """The model's optimizer, which the guard keeps from taking a bad step."""
        if in_backward:
            # A step is judged between forward and backward, and each gradient before it is freed: by the host.
            self.released = OptimizerInBackward(model, optimizer, check=self._check_gradient)
        else:
            self.guard.judge_on_device(optimizer, self.args.device)
        return optimizer

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss; if backward takes the step, let the guard judge it before that."""
        loss: Any = super().compute_loss(model, *args, **kwargs)
        if self.released and isinstance(loss, torch.Tensor) and model.training:
            self.released.left_out = self.guard.judge(
                step=self.state.global_step + 1, loss_sum=self._tr_loss + loss.detach(), norm=None
            )
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Let the guard judge the step before the optimizer takes it."""
        if self.released:  # judged in compute_loss, and stepped in backward
            return self.released.norm()
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.guard.judge(step=self.state.global_step + 1, loss_sum=self._tr_loss, norm=norm):
            model.zero_grad(set_to_none=True)  # an optimizer skips parameters without a gradient
        return norm

    def _check_gradient(self, norm: torch.Tensor) -> None:
        self.guard.check_gradient(step=self.state.global_step + 1, norm=norm)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log what is known of a step that is judged."""
        self.guard.settle()
        super().log(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the weights after a step that is judged."""
        self.guard.settle()
        return super().evaluate(*args, **kwargs)
