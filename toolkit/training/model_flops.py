"""Model FLOPs of training, for MFU: the share of the device's rate that the model's own work uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def flops_per_token(model: PreTrainedModel, block_size: int) -> float:
    """FLOPs of the forward and backward pass for each token of a block, without recomputation.

    Two per weight and token forward, two for the gradient of its input, two for its own if it is trained; and
    12 x layers x width x block for attention, the causal half not taken off. Chowdhery and others 2022, appendix B,
    https://arxiv.org/abs/2204.02311. Embeddings are looked up, not multiplied, except as the head; of a mixture's
    experts those count that a token goes through. (`floating_point_ops` of transformers leaves out attention and a tied
    head, and counts frozen weights and all experts as trained.) 0 if the weights are quantized: several are packed in
    one number.
    """
    import torch

    lookups = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    embedded = {id(weight) for module in lookups for weight in module.parameters()}
    head: Any = model.get_output_embeddings()
    if head is not None:
        embedded -= {id(weight) for weight in head.parameters()}
    config: Any = model.config.get_text_config()
    if getattr(model.config, "quantization_config", None) is not None:
        return 0.0
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    routed = (getattr(config, "num_experts_per_tok", None) or experts or 1) / (experts or 1)
    flops = 0.0
    for name, weight in model.named_parameters():
        if id(weight) not in embedded:
            flops += (6 if weight.requires_grad else 4) * weight.numel() * (routed if ".experts." in name else 1)
    heads = getattr(config, "num_attention_heads", None) or 0
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads) if heads else 0
    return flops + 12 * getattr(config, "num_hidden_layers", 0) * width * block_size
