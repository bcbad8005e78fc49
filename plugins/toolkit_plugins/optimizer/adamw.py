"""AdamW, with weight decay where it belongs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from toolkit.api import Optimizer, RunContext

if TYPE_CHECKING:
    import torch


class AdamW(Optimizer):
    """Adam with decoupled weight decay, on matrices alone.

    Biases and the gains of norms are vectors and do not decay; embeddings are matrices and do, both as the
    Trainer has it. Loshchilov and Hutter 2017, https://arxiv.org/abs/1711.05101.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square. (0.9, 0.95) is common in pre-training."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""

    def build(
        self, model: torch.nn.Module, *, learning_rate: float, weight_decay: float, run: RunContext
    ) -> torch.optim.Optimizer:
        """Return a fused AdamW: on a CPU it takes a third of the plain one's time, on a GPU one kernel per step."""
        import torch

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(
            groups_by_decay(trained, weight_decay), lr=learning_rate, betas=self.betas, eps=self.eps, fused=True
        )


def groups_by_decay(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """The groups for AdamW: matrices decay, vectors do not. No group is empty."""
    matrices: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for parameter in parameters:
        (matrices if parameter.ndim >= 2 else vectors).append(parameter)
    groups = ({"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
