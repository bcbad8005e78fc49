"""Matrix products of the layers in float8, for GPUs that multiply it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from toolkit.api import Change, Claim, Device, Fidelity, OptionError, Requirement, RunContext, Settings, Strategy
from toolkit_plugins.memory.frozen_layers import layers_of
from toolkit_plugins.memory.qlora import is_matrix

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LEAST_CAPABILITY = (8, 9)
"""Ada, Hopper and later."""


class FP8(Strategy):
    """Multiply the matrices of the layers in float8, and everything else in bf16, which it sets.

    Inputs and weights are rounded to e4m3, gradients to e5m2, each tensor with a scale of its own. Embeddings, head,
    attention, norms, the experts of a mixture and LoRA's factors are not; weights, optimizer state and checkpoints stay
    in float32. A scale is that of a whole micro-batch, so another `micro_batch_size` rounds differently. Scaling takes
    time of its own, less with `torch_compile: true` and in proportion to large matrices. Needs a GPU of compute
    capability 8.9 or later (Ada, Hopper). Neither its speed nor its losses have been measured on one yet, so `auto`
    does not choose it, and a plan counts its products at the rate of bf16. Micikevicius et al. 2022,
    https://arxiv.org/abs/2209.05433.
    """

    # Of two strategies that each have a number format for the weights to be multiplied in, one would win in silence.
    claims: ClassVar[frozenset[Claim]] = frozenset({"weights"})
    fidelity: ClassVar[Fidelity] = "approximate"
    phase: ClassVar[Literal["weights", "adapters", "activations"]] = "weights"

    def requires(self) -> Sequence[Requirement]:
        """A GPU that multiplies float8."""
        cure = "use mixed-precision, which runs on any device"
        return [Requirement("device", "cuda", cure, compute_capability=LEAST_CAPABILITY)]

    def changes(self, settings: Settings, device: Device) -> Mapping[str, Change]:
        """Set bf16 for all other products; nothing on a device that lacks what it requires, which is told alone."""
        if (device.compute_capability or (0, 0)) < LEAST_CAPABILITY:
            return {}
        return {"precision": Change("bf16", "outside the layers' matrices; those are multiplied in float8")}

    def apply(self, model: PreTrainedModel, run: RunContext) -> PreTrainedModel:
        """Return the model, whose layers' matrices are multiplied in float8.

        Raises:
            OptionError: no product would be: the layers have no fitting matrices, or blocks no fitting length.
        """
        from toolkit_plugins.memory.float8_product import MULTIPLE

        if run.block_size % MULTIPLE:
            raise OptionError(
                f"float8 products need a multiple of {MULTIPLE} tokens; set objective.block_size to "
                f"{max(1, run.block_size // MULTIPLE) * MULTIPLE}, not {run.block_size}"
            )
        names = {module: name for name, module in model.named_modules()}
        matrices: list[Any] = [one for layer in layers_of(model) for one in layer.modules() if is_matrix(one)]
        fitting = [one for one in matrices if not any(side % MULTIPLE for side in one.weight.shape)]
        if not fitting:
            raise OptionError(
                f"{type(model).__name__} has no matrices in its layers whose sides are multiples of {MULTIPLE}, as "
                f"float8 products need; choose such a hidden_size and intermediate_size, or remove fp8"
            )
        for matrix in fitting:
            matrix.forward = MethodType(_forward, matrix)
        run.log.info("fp8: %s matrices of the layers are multiplied in float8", len(fitting))
        if rest := [one for one in matrices if one not in fitting]:
            run.log.info(
                "fp8 leaves %s matrices in bf16, such as %s, of %s: float8 needs multiples of %s",
                len(rest),
                names[rest[0]],
                " x ".join(map(str, rest[0].weight.shape)),
                MULTIPLE,
            )
        return model


def _forward(module: Any, inputs: torch.Tensor) -> torch.Tensor:
    """That of a Linear or a Conv1D, whose weight is stored transposed."""
    from transformers.pytorch_utils import Conv1D

    from toolkit_plugins.memory.float8_product import float8_linear

    weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
    return float8_linear(inputs, weight, module.bias)
