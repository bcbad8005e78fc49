"""The product of a linear layer in float8, forward and backward.

Inputs and weights are rounded to e4m3, the gradients of outputs to e5m2, as in Micikevicius et al. 2022,
https://arxiv.org/abs/2209.05433; sums are formed in float32. Each tensor has one scale, from its own largest element
and not from those of earlier steps, so that there is no state to save. Scales are powers of two: dividing by them
rounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

MULTIPLE = 16
"""What each side of a product has to be a multiple of, for cuBLAS."""
LEAST_SCALE = 2.0**-100
"""For a tensor of zeros."""


def float8_linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`inputs @ weight.T + bias` in bfloat16, multiplied in float8 where autocast would multiply in bfloat16.

    The plain product outside autocast, and if the tokens are no multiple of 16, as where text is generated.

    Args:
        inputs: shape (..., in), float32 or bfloat16.
        weight: shape (out, in), both multiples of 16.
        bias: shape (out,).
    """
    tokens = inputs.reshape(-1, inputs.shape[-1])
    if tokens.shape[0] % MULTIPLE or not torch.is_autocast_enabled(inputs.device.type):
        return linear(inputs, weight, bias)
    apply: Callable[..., torch.Tensor] = Float8Product.apply
    product = apply(tokens, weight)
    if bias is not None:
        product = product + bias.to(product.dtype)
    return product.view(*inputs.shape[:-1], -1)


class Float8Product(torch.autograd.Function):
    """`inputs @ weight.T` in bfloat16; of the inputs, only their float8 form is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return shape (tokens, out), for `inputs` of shape (tokens, in) and `weight` of shape (out, in)."""
        small, scale = _rounded(inputs, torch.float8_e4m3fn)
        matrix, matrix_scale = _rounded(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(small if ctx.needs_input_grad[1] else None, scale, matrix, matrix_scale)
        ctx.dtypes = inputs.dtype, weight.dtype
        return _product(small, scale, matrix.t(), matrix_scale, torch.bfloat16, use_fast_accum=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the gradients of both, each in the dtype of its tensor."""
        small, scale, matrix, matrix_scale = ctx.saved_tensors
        of_inputs, of_weight = ctx.dtypes
        steep, steep_scale = _rounded(slope, torch.float8_e5m2)
        inputs = weight = None
        if ctx.needs_input_grad[0]:
            inputs = _product(steep, steep_scale, matrix, matrix_scale, of_inputs)
        if ctx.needs_input_grad[1]:
            weight = _product(steep.t(), steep_scale, small, scale, of_weight)
        return inputs, weight


def _rounded(tensor: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The tensor over a scale, in float8, and that scale: the least power of two that lets every element fit."""
    largest = torch.linalg.vector_norm(tensor, math.inf, dtype=torch.float32)
    scale = (largest / torch.finfo(dtype).max).clamp(min=LEAST_SCALE).log2().ceil().exp2()
    return (tensor / scale).to(dtype), scale


def _product(
    left: torch.Tensor,
    left_scale: torch.Tensor,
    right: torch.Tensor,
    right_scale: torch.Tensor,
    dtype: torch.dtype,
    *,
    use_fast_accum: bool = False,
) -> torch.Tensor:
    """`left @ right` with its scales; Hopper multiplies rows by columns, and only so."""
    # Not torch.nn.functional.scaled_mm: torch has no FLOP formula for that one, so a plan would count nothing.
    return torch._scaled_mm(
        left.contiguous(),
        right.t().contiguous().t(),
        left_scale,
        right_scale,
        out_dtype=dtype,
        use_fast_accum=use_fast_accum,
    )
