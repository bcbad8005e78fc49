"""QLoRA: LoRA beside matrices quantized to 4 bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from toolkit.api import Claim, Device, Requirement, RunContext, Settings
from toolkit_plugins.memory.lora import LoRA

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class QLoRA(LoRA):
    """Quantize the frozen matrices to 4 bits and train LoRA factors beside them: an eighth of the weights' memory.

    Each matrix is dequantized when it is multiplied, which takes about a third longer than LoRA. Embeddings, norms and
    the head stay as they are. The result is an adapter for the full-precision model. The model is built on the CPU in
    float32 and quantized matrix by matrix on its way to the GPU. Dettmers et al. 2023,
    https://arxiv.org/abs/2305.14314.
    """

    claims: ClassVar[frozenset[Claim]] = frozenset({"weights", "trainable-parameters"})

    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """The sixteen quantization levels: nf4 spaces them like a normal distribution, fp4 like floating-point numbers."""
    bnb_4bit_use_double_quant: bool = True
    """Quantize the scales as well, which saves 0.4 bits per weight."""

    def requires(self) -> Sequence[Requirement]:
        """A GPU and bitsandbytes, which multiplies the 4-bit matrices there."""
        cure = "use lora, which needs neither"
        return [Requirement("device", "cuda", cure), Requirement("package", "bitsandbytes", cure)]

    @classmethod
    def candidates(cls, settings: Settings, device: Device) -> Iterable[Self]:
        """None: a plan cannot trace 4-bit matrices."""
        return []

    def apply(self, model: PreTrainedModel, run: RunContext) -> PreTrainedModel:
        """Return the model with quantized matrices, and LoRA factors beside them."""
        import torch

        compute = torch.bfloat16 if run.device.bf16 else torch.float16
        for parent in list(model.modules()):
            for name, module in list(parent.named_children()):
                if is_matrix(module) and module is not model.get_output_embeddings():
                    setattr(parent, name, self._quantized(module, compute))
        quantized: Any = model
        quantized.is_loaded_in_4bit = True  # peft reads this to pick its 4-bit LoRA layers
        return super().apply(model, run)

    def _quantized(self, module: Any, compute: torch.dtype) -> torch.nn.Module:
        from bitsandbytes.nn import Linear4bit, Params4bit
        from transformers.pytorch_utils import Conv1D

        weight = module.weight.data.T.contiguous() if isinstance(module, Conv1D) else module.weight.data
        how = {"quant_type": self.bnb_4bit_quant_type, "compress_statistics": self.bnb_4bit_use_double_quant}
        after, before = weight.shape
        linear: Any = Linear4bit(before, after, bias=False, compute_dtype=compute, device="meta", **how)
        linear.weight = Params4bit(weight, requires_grad=False, module=linear, **how)
        linear.bias = module.bias
        result: torch.nn.Module = linear
        return result


def is_matrix(module: torch.nn.Module) -> bool:
    """Whether the module is a linear layer; GPT-2's Conv1D is one whose weight is stored transposed."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (torch.nn.Linear, Conv1D))
