"""Muon on the hidden matrices, AdamW on everything else.

Why not `torch.optim.Muon` (2.13): it always multiplies in bfloat16, which on a CPU without such instructions takes 40
to 60 times as long as float32, and it assumes that every matrix is (out, in), which GPT-2's are not.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import TYPE_CHECKING, Any

from pydantic import Field

from toolkit.api import Optimizer, RunContext, parameter_groups

if TYPE_CHECKING:
    import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: steep at zero, so that five iterations bring all singular values to between 0.7 and 1.2."""


class Muon(Optimizer):
    """Orthogonalized momentum for the matrices inside the layers; AdamW for embeddings, head, norms and biases.

    `learning_rate` of the training section is AdamW's; the hidden matrices use `hidden_learning_rate`, and the
    learning-rate schedule scales both. `weight_decay` applies to both: each step shrinks a matrix by its own learning
    rate times the decay. What muP asks of the learning rates is granted to AdamW's part alone: an update of a given
    spectral norm moves activations alike at every width (Yang et al. 2023, https://arxiv.org/abs/2310.17813).
    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    """

    hidden_learning_rate: float = Field(default=0.02, gt=0)
    """Learning rate of the hidden matrices: the spectral norm of an update, whatever the size of the gradient."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay rate of the running mean of the hidden matrices' gradients."""
    nesterov: bool = True
    """Use Nesterov momentum, which looks one step ahead."""
    ns_steps: int = Field(default=5, ge=1, lt=100)
    """Newton-Schulz iterations; fewer are cheaper but orthogonalize less well."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to AdamW's denominator for numerical stability."""

    def build(
        self, model: torch.nn.Module, *, learning_rate: float, weight_decay: float, run: RunContext
    ) -> torch.optim.Optimizer:
        """Return one optimizer whose first parameter groups use Muon and whose others use AdamW."""
        import torch

        hidden = hidden_matrices(model)
        others = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter not in hidden]
        adamw = None
        if others:
            groups = parameter_groups(model, learning_rate=learning_rate, weight_decay=weight_decay, parameters=others)
            adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=self.betas, eps=self.eps, fused=True)
        if adamw and not hidden:
            run.log.info("muon found no hidden matrix to train, so AdamW takes all that is trained")
            return adamw
        muon_groups = [
            {
                "params": [matrix for matrix, stored_so in hidden.items() if stored_so == transposed],
                "lr": self.hidden_learning_rate,
                "weight_decay": weight_decay,
                "momentum": self.momentum,
                "nesterov": self.nesterov,
                "ns_steps": self.ns_steps,
                "transposed": transposed,
            }
            for transposed in sorted(set(hidden.values()))
        ]
        # bfloat16 is precise enough for the direction of an update, and twice as fast where the hardware multiplies it.
        return _joined(muon_groups, adamw, dtype=torch.bfloat16 if run.device.bf16 else torch.float32)


def hidden_matrices(model: torch.nn.Module) -> dict[torch.nn.Parameter, bool]:
    """The matrices inside the layers that require a gradient, with whether each is stored (in, out), as GPT-2's are.

    Embeddings do not map hidden vectors to hidden vectors, and neither does the head, tied to them or not. LoRA factors
    are halves of a matrix, and an update that is orthogonal in each is not so in their product; AdamW takes them.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    outside = {module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    find_head: Callable[[], Any] | None = getattr(model, "get_output_embeddings", None)
    if find_head and (head := find_head()) is not None:
        outside.add(head.weight)
    return {
        parameter: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad and parameter.ndim == 2 and parameter not in outside and "lora_" not in name
    }


def orthogonalized(matrix: torch.Tensor, *, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrix with its singular values brought close to 1, by Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    result: torch.Tensor = matrix.to(dtype)
    tall = matrix.shape[0] > matrix.shape[1]
    if tall:
        result = result.T
    result = result / result.norm().clamp(min=1e-7)  # the iteration converges for spectral norms up to 1
    for _ in range(steps):
        gram = result @ result.T
        result = a * result + (b * gram + c * gram @ gram) @ result
    return result.T if tall else result


def _joined(
    muon_groups: list[dict[str, Any]], adamw: torch.optim.AdamW | None, *, dtype: torch.dtype
) -> torch.optim.Optimizer:
    """One optimizer for the Trainer, the schedule and the checkpoint: it holds all parameter groups and all state."""
    import torch

    class MuonWithAdamW(torch.optim.Optimizer):
        def __init__(self) -> None:
            super().__init__([*muon_groups, *(adamw.param_groups if adamw else [])], {})

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for group in self.param_groups:
                if "ns_steps" in group:
                    self._muon_step(group)
            if adamw is not None:
                # Loading a checkpoint replaces the groups and the state, so AdamW gets the current ones at every step.
                adamw.param_groups = [group for group in self.param_groups if "ns_steps" not in group]
                adamw.state = self.state
                adamw.step()
            return loss

        def _muon_step(self, group: dict[str, Any]) -> None:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                if "momentum_buffer" not in self.state[matrix]:
                    self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix.grad)
                mean = self.state[matrix]["momentum_buffer"]
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                ahead = matrix.grad.lerp(mean, group["momentum"]) if group["nesterov"] else mean
                direction = orthogonalized(ahead, steps=group["ns_steps"], dtype=dtype)
                # Scaled so that a map from `before` to `after` features moves its outputs as much as a square one.
                before, after = matrix.shape if group["transposed"] else reversed(matrix.shape)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-group["lr"] * sqrt(max(1.0, after / before)))

    return MuonWithAdamW()
