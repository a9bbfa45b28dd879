"""Simulate four-bit numbers in full precision, group by group, as in Stable-SPAM's experiments.

Problem: does training survive 4-bit weights and activations? Idea: answer that without 4-bit hardware, by
rounding to the values that 4 bits can hold and computing with those. Each group of consecutive elements x has
its own scale, and may keep its few largest magnitudes exactly; alpha is the largest of the other magnitudes:

    FP4         alpha/4 round(4 x / alpha)                        9 levels
    symmetric   alpha/7 clamp(round(7 x / alpha), -8, 7)          INT4 for activations
    INT4        s (clamp(round(x / s) + z, 0, 15) - z)            s = (max - min)/15, z = -round(min / s)

The gradient passes straight through. Huang et al.: Stable-SPAM, 2025, arXiv 2502.17055, the simulation of its
official code: "FP4" is its format E1M2 with bias 1, whose levels are evenly spaced.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from trueup._numerics.chunking import sample_chunks
from trueup._numerics.custom_function import must_use_composite_ops
from trueup._numerics.upcasting import upcast

__all__ = ["fake_quantize_fp4", "fake_quantize_int4", "fake_quantize_int4_symmetric", "int4_codes"]


def round_symmetric(
    groups: Tensor, keep_top: int, levels: float, low: float, high: float, limit: float
) -> Tensor:
    """Round to alpha / levels times an integer in [low, high], within [-limit, limit]: FP4 and symmetric."""
    magnitude = groups.abs()
    if keep_top:
        # A magnitude equal to alpha is itself a level, so among equals it does not matter which are kept.
        largest = magnitude.topk(keep_top + 1, dim=1, sorted=True).values[:, -1:]
    else:
        largest = magnitude.amax(1, keepdim=True)
    alpha = largest.clamp(min=1e-6)
    rounded = (groups / alpha).mul_(levels).round_().clamp_(low, high).mul_(alpha / levels)
    rounded.clamp_(-limit, limit)
    return torch.where(magnitude > largest, groups, rounded) if keep_top else rounded


def encode_int4(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute each element's INT4 code, and each group's scale s and zero point z."""
    low, high = groups.aminmax(dim=1, keepdim=True)
    scale = (high / 2 - low / 2).clamp_(min=5e-6) / 7.5  # halves, as the range itself may overflow
    zero = (low / scale).round_().neg_().clamp_(0, 15)
    return (groups / scale).round_().add_(zero).clamp_(0, 15), scale, zero


def round_int4(groups: Tensor, limit: float) -> Tensor:
    """Round to the values of the INT4 codes, within [-limit, limit]."""
    codes, scale, zero = encode_int4(groups)
    return codes.sub_(zero).mul_(scale).clamp_(-limit, limit)


def fake_quantize_fp4(
    input: Float[Tensor, "*shape"], *, group_size: int = 256, keep_top: int = 2
) -> Float[Tensor, "*shape"]:
    """Round each group to 9 evenly spaced levels, but for its largest magnitudes; gradients pass unchanged.

    Args:
        input: floating point; groups are runs of `group_size` elements in row-major order.
        group_size: number of elements that share a scale; must divide the number of elements.
        keep_top: number of largest magnitudes that a group keeps exactly, from 0 to `group_size - 1`; the
            scale is the largest of the others.

    Returns:
        The input's shape and dtype; scales are computed in float32 or better. A level beyond the largest
        finite value of the dtype is replaced by that value. Infinities and NaN count among the largest
        magnitudes: up to `keep_top` of them are kept and do not affect the others; one more makes the whole
        group NaN.

    Raises:
        TypeError: the input is not floating point.
        ValueError: a size that does not fit.

    Source: Huang et al. 2025, section 5 and its code.

    >>> fake_quantize_fp4(torch.tensor([9.0, 1.0, -0.4, 0.1]), group_size=4, keep_top=1)
    tensor([ 9.0000,  1.0000, -0.5000,  0.0000])
    """
    _check("fake_quantize_fp4", input, group_size, keep_top)
    limit = torch.finfo(input.dtype).max
    quantize = partial(round_symmetric, keep_top=keep_top, levels=4.0, low=-4.0, high=4.0, limit=limit)
    return _straight_through(input, quantize, group_size)


def fake_quantize_int4_symmetric(
    input: Float[Tensor, "*shape"], *, group_size: int = 256, keep_top: int = 2
) -> Float[Tensor, "*shape"]:
    """Round to the levels -8 to 7, in sevenths of a group's scale.

    Meant for activations, whose few largest magnitudes would cost all others their resolution. Arguments,
    result, errors and source as `fake_quantize_fp4`.

    >>> fake_quantize_int4_symmetric(torch.tensor([9.0, 0.7, -0.42, 0.0]), group_size=4, keep_top=1)
    tensor([ 9.0000,  0.7000, -0.4000,  0.0000])
    """
    _check("fake_quantize_int4_symmetric", input, group_size, keep_top)
    limit = torch.finfo(input.dtype).max
    quantize = partial(round_symmetric, keep_top=keep_top, levels=7.0, low=-8.0, high=7.0, limit=limit)
    return _straight_through(input, quantize, group_size)


def fake_quantize_int4(input: Float[Tensor, "*shape"], *, group_size: int = 256) -> Float[Tensor, "*shape"]:
    """Round to 16 levels between a group's smallest and largest value; gradients pass unchanged.

    Meant for weights. Arguments, result, errors and source as `fake_quantize_fp4`, except that no element is
    kept exactly: an infinity or NaN makes its whole group NaN. As in the official code the zero point is
    itself one of the 16 codes, so a group whose values have a single sign and are far from zero is clipped.

    >>> fake_quantize_int4(torch.tensor([0.0, 1.0, 7.6, 15.0]), group_size=4)
    tensor([ 0.,  1.,  8., 15.])
    """
    _check("fake_quantize_int4", input, group_size, 0)
    return _straight_through(input, partial(round_int4, limit=torch.finfo(input.dtype).max), group_size)


def int4_codes(
    input: Float[Tensor, "*shape"], *, group_size: int = 256
) -> tuple[Tensor, Float[Tensor, "groups 1"], Float[Tensor, "groups 1"]]:
    """Compute the codes behind `fake_quantize_int4`, 0 to 15, and each group's scale and zero point.

    Returns:
        uint8 codes of the input's shape; scale and zero point, of shape `(groups, 1)`. The value of a code is
        `scale * (code - zero)`. In a group with an infinity or NaN all codes are 0, and their value is NaN.

    >>> codes, scale, zero = int4_codes(torch.tensor([-1.0, 0.0, 0.6, 2.0]), group_size=4)
    >>> codes, scale, zero
    (tensor([ 0,  5,  8, 15], dtype=torch.uint8), tensor([[0.2000]]), tensor([[5.]]))
    """
    _check("int4_codes", input, group_size, 0)
    codes, scale, zero = encode_int4(upcast(input.detach().reshape(-1, group_size)))
    return codes.nan_to_num_(0.0).view(input.shape).to(torch.uint8), scale, zero  # a cast of NaN is undefined


class _StraightThrough(torch.autograd.Function):
    """Quantise group by group, and pass the gradient on unchanged. Nothing is saved for the backward pass."""

    @staticmethod
    def forward(x: Tensor, quantize: Callable[[Tensor], Tensor], group_size: int) -> Tensor:
        groups = x.reshape(-1, group_size)
        if not x.is_cpu or torch.compiler.is_compiling():
            return quantize(upcast(groups)).to(x.dtype).view(x.shape)
        output = torch.empty_like(groups)
        for chunk, out in sample_chunks(groups, output):
            out.copy_(quantize(upcast(chunk)))
        return output.view(x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, quantize: Any, group_size: int) -> Any:
        # With samples along dimension 0 no group spans two of them.
        return _straight_through(x.movedim(in_dims[0], 0), quantize, group_size), 0


def _straight_through(x: Tensor, quantize: Callable[[Tensor], Tensor], group_size: int) -> Tensor:
    if must_use_composite_ops():
        quantized = quantize(upcast(x.detach().reshape(-1, group_size))).to(x.dtype).view(x.shape)
        return quantized + (x - x.detach())
    return cast(Tensor, _StraightThrough.apply(x, quantize, group_size))  # type: ignore[no-untyped-call]


def _check(name: str, input: object, group_size: int, keep_top: int) -> None:
    if not isinstance(input, Tensor) or not input.is_floating_point():
        got = input.dtype if isinstance(input, Tensor) else type(input).__name__
        raise TypeError(f"{name} needs a tensor of floating point values; got {got}")
    if group_size < 1 or input.numel() % group_size:
        raise ValueError(
            f"{name} needs a group_size that divides the number of elements; got {input.numel()} elements of "
            f"shape {tuple(input.shape)} and group_size={group_size}: pass a divisor, such as the last "
            "dimension"
        )
    if not 0 <= keep_top < group_size:
        raise ValueError(f"{name} needs keep_top from 0 to group_size - 1; got {keep_top} of {group_size}")
