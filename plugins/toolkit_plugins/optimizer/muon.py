"""Muon on the hidden matrices, AdamW on everything else.

Why not `torch.optim.Muon` (2.13): it always multiplies in bfloat16, which on a CPU without such instructions takes 40
to 60 times as long as float32, and it assumes that every matrix is (out, in), which GPT-2's are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from math import sqrt
from typing import TYPE_CHECKING, Any

from pydantic import Field

from toolkit.api import Optimizer, RunContext, parameter_groups

if TYPE_CHECKING:
    import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: steep at zero, so that five iterations bring all singular values to between 0.7 and 1.2."""
BATCHED_ELEMENTS, BATCHED_ELEMENTS_ON_CPU = 2**25, 2**23
"""So many elements of alike matrices are multiplied together. On a GPU, 64 MB in bfloat16: of 768 x 3,072, one fills a
third of an H100's processors; of 4,096 x 14,336, all. On a CPU, 16 MB: with two threads and AMX, matrices of
128 x 128 take two fifths of the time that they take one by one, and those of GPT-2 124M four fifths."""


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
        return _joined(
            muon_groups,
            adamw,
            # Precise enough for the direction of an update, and twice as fast where the hardware multiplies it.
            dtype=torch.bfloat16 if run.device.bf16 else torch.float32,
            batched_elements=BATCHED_ELEMENTS if run.device.kind == "cuda" else BATCHED_ELEMENTS_ON_CPU,
        )


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


def orthogonalized(matrices: torch.Tensor, *, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrices with their singular values brought close to 1, by Newton-Schulz iteration.

    Args:
        matrices: shape (rows, columns) or (matrices, rows, columns).
        steps: iterations.
        dtype: of the products and the result.
    """
    import torch

    a, b, c = NEWTON_SCHULZ
    add_product = torch.addmm if matrices.ndim == 2 else torch.baddbmm  # the sum costs no pass over memory of its own
    result = matrices.to(dtype)
    tall = matrices.shape[-2] > matrices.shape[-1]
    if tall:
        result = result.mT
    # The iteration converges for spectral norms up to 1.
    result = result / torch.linalg.matrix_norm(result, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = result @ result.mT
        polynomial = add_product(gram, gram, gram, beta=b, alpha=c)
        result = add_product(result, polynomial, result, beta=a)
    return result.mT if tall else result


def batches_of(matrices: Iterable[torch.Tensor], *, elements: int) -> Iterator[list[torch.Tensor]]:
    """The matrices in batches of one shape and type, of at most so many elements; a larger matrix is one alone."""

    def kind(matrix: torch.Tensor) -> tuple[Any, ...]:
        return tuple(matrix.shape), str(matrix.dtype), str(matrix.device)

    for _, grouped in groupby(sorted(matrices, key=kind), kind):
        alike = list(grouped)
        number = max(1, elements // alike[0].numel())
        yield from (alike[start : start + number] for start in range(0, len(alike), number))


def local_parts(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What this process holds of each tensor, in the same memory: its shard, or all of one that is not sharded."""
    from torch.distributed.tensor import DTensor

    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def whole_tensors(parts: Iterable[torch.Tensor], matrices: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The whole of each tensor of which the processes hold parts, as they hold those of the matrices.

    Every process orthogonalizes all of the matrices, as without shards: that needs the whole matrix.
    """
    from torch.distributed.tensor import DTensor

    return [
        DTensor.from_local(
            part,
            matrix.device_mesh,
            matrix.placements,
            run_check=False,
            shape=matrix.shape,
            stride=matrix.stride(),
        ).full_tensor()
        if isinstance(matrix, DTensor)
        else part
        for part, matrix in zip(parts, matrices, strict=True)
    ]


def own_shards(tensors: Iterable[torch.Tensor], matrices: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return this process's part of each whole tensor, sharded as the matrices are."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    return [
        distribute_tensor(tensor, matrix.device_mesh, matrix.placements, src_data_rank=None).to_local()
        if isinstance(matrix, DTensor)
        else tensor
        for tensor, matrix in zip(tensors, matrices, strict=True)
    ]


def _joined(
    muon_groups: list[dict[str, Any]], adamw: torch.optim.AdamW | None, *, dtype: torch.dtype, batched_elements: int
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
            trained = (matrix for matrix in group["params"] if matrix.grad is not None)
            for matrices in batches_of(trained, elements=batched_elements):
                self._step_together(matrices, group)

        def _step_together(self, matrices: list[torch.Tensor], group: dict[str, Any]) -> None:
            gradients = [gradient for matrix in matrices if (gradient := matrix.grad) is not None]
            for matrix, gradient in zip(matrices, gradients, strict=True):
                if "momentum_buffer" not in self.state[matrix]:
                    self.state[matrix]["momentum_buffer"] = torch.zeros_like(gradient)
            means = local_parts(self.state[matrix]["momentum_buffer"] for matrix in matrices)
            gradients = local_parts(gradients)
            torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, means, group["momentum"]) if group["nesterov"] else means
            ahead = whole_tensors(ahead, matrices)
            together = ahead[0] if len(ahead) == 1 else torch.stack(ahead)
            found = orthogonalized(together, steps=group["ns_steps"], dtype=dtype)
            # Several in the matrices' own type and layout: one kernel then updates them all.
            directions = [found] if len(ahead) == 1 else found.to(together.dtype).contiguous().unbind()
            # Scaled so that a map from `before` to `after` features moves its outputs as much as a square one.
            before, after = matrices[0].shape if group["transposed"] else reversed(matrices[0].shape)
            directions, weights = own_shards(directions, matrices), local_parts(matrices)
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, directions, alpha=-group["lr"] * sqrt(max(1.0, after / before)))

    return MuonWithAdamW()
