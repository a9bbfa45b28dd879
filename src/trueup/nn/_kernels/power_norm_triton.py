# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Power normalisation's passes over rows `(N, C)` as Triton kernels, for CUDA outside `torch.compile`.

Each kernel reads its rows once. torch's operations need several passes, compiled or not: the statistics and
the backward pass need the means of each row's groups and, together with them, sums over the rows.
Each program takes one group of channels and some rows of it, a chunk of rows at a time. It sums over its
rows; its sums are one row of the partial sums, which torch adds up. Without group scaling the channels are
cut into groups of a fixed size.

Import this only where Triton is installed: torch's CPU builds come without it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["gradients", "scale_and_shift", "sums_of_squares"]

_GROUP = 1024  # channels of a program without group scaling
_CHUNK = 4096  # values that a program works on at once
_PROGRAMS = 8192  # at most, over all groups


@triton.jit
def _sums_of_squares(
    x, is_token, inverse_rms, total, token_total, rows, channels, size, eps,
    GROUPED: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program, group = tl.program_id(0), tl.program_id(1)
    column = group * size + tl.arange(0, COLUMNS)
    in_group = (tl.arange(0, COLUMNS) < size) & (column < channels)
    sums = tl.zeros((COLUMNS,), tl.float32)
    token_sums = tl.zeros((COLUMNS,), tl.float32)
    for first in range(program * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        in_rows = row < rows
        offsets = row[:, None] * channels + column[None, :]
        value = tl.load(x + offsets, mask=in_rows[:, None] & in_group[None, :], other=0.0).to(tl.float32)
        square = value * value
        if GROUPED:
            inverse = 1.0 / tl.sqrt(tl.sum(square, 1) / size + tl.cast(eps, tl.float32))
            tl.store(inverse_rms + row * tl.num_programs(1) + group, inverse, mask=in_rows)
            square = square * (inverse * inverse)[:, None]
        sums += tl.sum(square, 0)
        if MASKED:
            token = tl.load(is_token + row, mask=in_rows, other=0) != 0
            token_sums += tl.sum(tl.where(token[:, None], square, 0.0), 0)
    tl.store(total + program * channels + column, sums, mask=in_group)
    if MASKED:
        tl.store(token_total + program * channels + column, token_sums, mask=in_group)


@triton.jit
def _scale_and_shift(
    x, inverse_rms, scale, shift, y, rows, channels, size,
    GROUPED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program, group = tl.program_id(0), tl.program_id(1)
    column = group * size + tl.arange(0, COLUMNS)
    in_group = (tl.arange(0, COLUMNS) < size) & (column < channels)
    row = (program * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    in_rows = row < rows
    valid = in_rows[:, None] & in_group[None, :]
    offsets = row[:, None] * channels + column[None, :]
    value = tl.load(x + offsets, mask=valid, other=0.0).to(tl.float32)
    if GROUPED:
        value *= tl.load(inverse_rms + row * tl.num_programs(1) + group, mask=in_rows, other=0.0)[:, None]
    factor = tl.load(scale + column, mask=in_group, other=0.0)
    offset = tl.load(shift + column, mask=in_group, other=0.0)
    tl.store(y + offsets, (value * factor[None, :] + offset[None, :]).to(y.dtype.element_ty), mask=valid)


@triton.jit
def _gradients(
    grad, x, inverse_rms, scale, correction, dx, sum_gu, sum_g, rows, channels, size,
    GROUPED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program, group = tl.program_id(0), tl.program_id(1)
    column = group * size + tl.arange(0, COLUMNS)
    in_group = (tl.arange(0, COLUMNS) < size) & (column < channels)
    factor = tl.load(scale + column, mask=in_group, other=0.0)
    coefficient = tl.load(correction + column, mask=in_group, other=0.0)
    gu_sums = tl.zeros((COLUMNS,), tl.float32)
    sums = tl.zeros((COLUMNS,), tl.float32)
    for first in range(program * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        in_rows = row < rows
        valid = in_rows[:, None] & in_group[None, :]
        offsets = row[:, None] * channels + column[None, :]
        g = tl.load(grad + offsets, mask=valid, other=0.0).to(tl.float32)
        u = tl.load(x + offsets, mask=valid, other=0.0).to(tl.float32)
        if GROUPED:
            inverse = tl.load(inverse_rms + row * tl.num_programs(1) + group, mask=in_rows, other=0.0)
            u *= inverse[:, None]
        gu_sums += tl.sum(g * u, 0)
        sums += tl.sum(g, 0)
        du = g * factor[None, :] - u * coefficient[None, :]
        if GROUPED:
            du = (du - u * (tl.sum(du * u, 1) / size)[:, None]) * inverse[:, None]
        tl.store(dx + offsets, du.to(dx.dtype.element_ty), mask=valid)
    tl.store(sum_gu + program * channels + column, gu_sums, mask=in_group)
    tl.store(sum_g + program * channels + column, sums, mask=in_group)


def sums_of_squares(
    x: Tensor, is_token: Tensor | None, groups: int, eps: float
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Return `inverse_rms` (None without groups), and the sums of u^2 over all rows and over the tokens."""
    plan = _Plan(x, groups)
    inverse_rms = plan.empty(plan.rows, groups) if groups else None
    total = plan.empty(plan.programs, plan.channels)
    token_total = torch.empty_like(total) if is_token is not None else None
    plan.launch(
        _sums_of_squares, plan.programs, plan.x, is_token, inverse_rms, total, token_total,
        plan.rows, plan.channels, plan.size, eps,
        GROUPED=bool(groups), MASKED=is_token is not None,
    )  # fmt: skip
    return inverse_rms, total.sum(0), None if token_total is None else token_total.sum(0)


def scale_and_shift(x: Tensor, inverse_rms: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """Return `x * inverse_rms * scale + shift` in x's dtype."""
    plan = _Plan(x, 0 if inverse_rms is None else inverse_rms.shape[1])
    output = torch.empty_like(plan.x)
    plan.launch(
        _scale_and_shift, plan.chunks, plan.x, inverse_rms, scale.contiguous(),
        shift.expand(plan.channels).contiguous(), output, plan.rows, plan.channels, plan.size,
        GROUPED=inverse_rms is not None,
    )  # fmt: skip
    return output


def gradients(
    grad: Tensor, x: Tensor, inverse_rms: Tensor | None, scale: Tensor, correction: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the approximate gradient of x, and the sums over the rows of grad * u and of grad."""
    plan = _Plan(x, 0 if inverse_rms is None else inverse_rms.shape[1])
    grad_x = torch.empty_like(plan.x)
    sum_gu, sum_g = plan.empty(2, plan.programs, plan.channels).unbind()
    plan.launch(
        _gradients, plan.programs, grad.contiguous(), plan.x, inverse_rms, scale.contiguous(),
        correction.contiguous(), grad_x, sum_gu, sum_g, plan.rows, plan.channels, plan.size,
        GROUPED=inverse_rms is not None,
    )  # fmt: skip
    return grad_x, sum_gu.sum(0), sum_g.sum(0)


class _Plan:
    """Assignment of rows and groups of channels to programs."""

    def __init__(self, x: Tensor, groups: int) -> None:
        self.x = x.contiguous()
        self.rows, self.channels = x.shape
        self.size = self.channels // groups if groups else min(self.channels, _GROUP)
        self.groups = triton.cdiv(self.channels, self.size)
        self.columns = triton.next_power_of_2(self.size)
        self.chunk_rows = max(1, _CHUNK // self.columns)
        self.chunks = triton.cdiv(self.rows, self.chunk_rows)
        self.programs = min(self.chunks, max(1, _PROGRAMS // self.groups))

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.x.device)

    def launch(self, kernel: Any, programs: int, *arguments: Any, **constants: bool) -> None:
        with torch.cuda.device(self.x.device):
            kernel[programs, self.groups](
                *arguments, **constants, ROWS=self.chunk_rows, COLUMNS=self.columns
            )  # fmt: skip
