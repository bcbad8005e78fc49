"""Causal attention in bfloat16 on a CPU, by blocks of queries: matrix products and a softmax.

Forward and backward, in ms (tests/benchmarks/test_attention_in_blocks.py):

| sequences x heads x tokens x width | torch's kernel | in blocks |
| two cores with AVX-512 bf16, 32 x 4 x 64 x 32, 8 x 4 x 256 x 32, 4 x 12 x 1,024 x 64 | 7.6, 7.5, 142 | 1.4, 3.6, 101 |
| one core with AMX, which torch's kernel uses: the same | 24.8, 18.2, 237 | 5.8, 10.9, 282 |

The weights are rounded to bfloat16, so the result differs from the exact one by 0.4 %, where that of the kernel differs
by 0.2, and the gradients by 0.4 to 0.5 %, where those of the kernel differ by 0.3 to 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from toolkit.api import Objective, RunContext
from toolkit.logs import libraries_quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "in-blocks"
"""What transformers knows this attention by, in a process; no config that is saved has it."""
BLOCK = 256
"""Queries at a time. Their weights are recomputed in the backward pass, where there is more than one block."""


def attend_in_blocks(model: PreTrainedModel, objective: Objective, context: RunContext) -> None:
    """Have the model's attention computed here, in passes that compute gradients, where that is faster.

    Does nothing if the model's attention is not transformers' sdpa.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    in_bf16_on_cpu = context.device.kind == "cpu" and context.precision == "bf16"
    if not (in_bf16_on_cpu and objective.task == "causal-lm" and model.config._attn_implementation == "sdpa"):
        return
    if not torch.cpu._is_avx512_bf16_supported():  # there it was not measured
        return
    if torch.cpu._is_amx_tile_supported() and context.block_size > BLOCK:  # there torch's kernel is as fast, or faster
        return
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    with libraries_quiet():  # of a model that cannot change its attention it says so, and goes on as before
        model.set_attn_implementation(NAME)


def attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The attention of a layer, as transformers calls it; by torch's kernel, where there is a mask or dropout.

    Query (batch, heads, length, width), key and value (batch, heads of keys, length, width); without a mask, attention
    is causal. `scaling` and `dropout` are among the options.

    Returns:
        The attended values, (batch, length, heads, width), and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = options.get("is_causal") is not False and getattr(module, "is_causal", True)
    is_plain = attention_mask is None and not options.get("dropout") and causal and query.shape[2] == key.shape[2]
    in_bf16 = query.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if not (is_plain and in_bf16 and torch.is_grad_enabled()):
        by_torch: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return by_torch
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (each.repeat_interleave(shared, dim=1) for each in (key, value))
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    attended = _in_blocks(*(each.to(torch.bfloat16) for each in (query, key, value)), scale)
    return attended.transpose(1, 2).contiguous(), None


def _weights(query: Tensor, key: Tensor, begin: int, end: int) -> Tensor:
    """What the queries from `begin` to `end` attend to, of the keys up to them."""
    scores = query[..., begin:end, :] @ key[..., :end, :].transpose(-1, -2)
    later = torch.ones(end - begin, end - begin, dtype=torch.bool, device=scores.device).triu(1)
    scores[..., begin:].masked_fill_(later, -torch.inf)
    return scores.softmax(-1)


class _InBlocks(torch.autograd.Function):
    """softmax(scale x query @ key.T, each query's own and earlier keys) @ value, all (batch, heads, length, width)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        query = query * scale
        attended = torch.empty_like(value)
        length = query.shape[-2]
        for begin in range(0, length, BLOCK):
            end = min(begin + BLOCK, length)
            weights = _weights(query, key, begin, end)
            attended[..., begin:end, :] = weights @ value[..., :end, :]
        ctx.save_for_backward(query, key, value, *([weights] if length <= BLOCK else []))
        ctx.scale = scale
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        of_query, of_key, of_value = (torch.zeros_like(each, dtype=torch.float32) for each in (query, key, value))
        length = query.shape[-2]
        for begin in range(0, length, BLOCK):
            end = min(begin + BLOCK, length)
            weights = kept[0] if kept else _weights(query, key, begin, end)
            here = slope[..., begin:end, :]
            of_value[..., :end, :] += weights.transpose(-1, -2) @ here
            of_weights = here @ value[..., :end, :].transpose(-1, -2)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_query[..., begin:end, :] = of_scores @ key[..., :end, :]
            of_key[..., :end, :] += of_scores.transpose(-1, -2) @ query[..., begin:end, :]
        of_query *= ctx.scale
        return *(each.to(query.dtype) for each in (of_query, of_key, of_value)), None


# Not compiled: torch.compile would keep the weights of all blocks for the backward pass, 0.9 GB in GPT-2 124M.
_in_blocks: Callable[..., Tensor] = torch.compiler.disable(_InBlocks.apply)
