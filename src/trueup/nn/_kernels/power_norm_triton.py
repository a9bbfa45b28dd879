# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Power normalisation's passes over rows `(N, C)` as Triton kernels, for CUDA outside `torch.compile`.

Each reads its rows once. What torch's operations cannot do in one pass, compiled or not, is to take the means
of a row's groups and the sums over rows together: the statistics need both, and so does the backward pass.
A program takes a tile of rows of one group of channels at a time and keeps that group's sums to itself; its
sums are a row of the partial sums, which torch adds up. Without group scaling a group is a chunk of channels.

Only `power_norm` imports this, and where there is Triton: torch's builds for CPUs come without.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["gradients", "normalized", "squares"]

_CHUNK = 1024  # channels at once where no group says how many
_TILE = 4096  # values at once
_PROGRAMS = 8192  # that share a column's rows


@triton.jit
def _squares(
    x, keep, rms, total, kept, rows, channels, size, eps,
    GROUPED: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program, group = tl.program_id(0), tl.program_id(1)
    column = group * size + tl.arange(0, COLUMNS)
    mine = (tl.arange(0, COLUMNS) < size) & (column < channels)
    sums = tl.zeros((COLUMNS,), tl.float32)
    kept_sums = tl.zeros((COLUMNS,), tl.float32)
    for first in range(program * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        there = row < rows
        at = row[:, None] * channels + column[None, :]
        value = tl.load(x + at, mask=there[:, None] & mine[None, :], other=0.0).to(tl.float32)
        square = value * value
        if GROUPED:
            inverse = 1.0 / tl.sqrt(tl.sum(square, 1) / size + tl.cast(eps, tl.float32))
            tl.store(rms + row * tl.num_programs(1) + group, inverse, mask=there)
            square = square * (inverse * inverse)[:, None]
        sums += tl.sum(square, 0)
        if MASKED:
            real = tl.load(keep + row, mask=there, other=0) != 0
            kept_sums += tl.sum(tl.where(real[:, None], square, 0.0), 0)
    tl.store(total + program * channels + column, sums, mask=mine)
    if MASKED:
        tl.store(kept + program * channels + column, kept_sums, mask=mine)


@triton.jit
def _normalized(
    x, rms, scale, shift, y, rows, channels, size,
    GROUPED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program, group = tl.program_id(0), tl.program_id(1)
    column = group * size + tl.arange(0, COLUMNS)
    mine = (tl.arange(0, COLUMNS) < size) & (column < channels)
    row = (program * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    there = row < rows
    inside = there[:, None] & mine[None, :]
    at = row[:, None] * channels + column[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if GROUPED:
        value *= tl.load(rms + row * tl.num_programs(1) + group, mask=there, other=0.0)[:, None]
    factor = tl.load(scale + column, mask=mine, other=0.0)
    offset = tl.load(shift + column, mask=mine, other=0.0)
    tl.store(y + at, (value * factor[None, :] + offset[None, :]).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gradients(
    grad, x, rms, scale, pull, dx, along_u, along_one, rows, channels, size,
    GROUPED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program, group = tl.program_id(0), tl.program_id(1)
    column = group * size + tl.arange(0, COLUMNS)
    mine = (tl.arange(0, COLUMNS) < size) & (column < channels)
    factor = tl.load(scale + column, mask=mine, other=0.0)
    back = tl.load(pull + column, mask=mine, other=0.0)
    u_sums = tl.zeros((COLUMNS,), tl.float32)
    sums = tl.zeros((COLUMNS,), tl.float32)
    for first in range(program * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        there = row < rows
        inside = there[:, None] & mine[None, :]
        at = row[:, None] * channels + column[None, :]
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        u = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if GROUPED:
            inverse = tl.load(rms + row * tl.num_programs(1) + group, mask=there, other=0.0)
            u *= inverse[:, None]
        u_sums += tl.sum(g * u, 0)
        sums += tl.sum(g, 0)
        du = g * factor[None, :] - u * back[None, :]
        if GROUPED:
            du = (du - u * (tl.sum(du * u, 1) / size)[:, None]) * inverse[:, None]
        tl.store(dx + at, du.to(dx.dtype.element_ty), mask=inside)
    tl.store(along_u + program * channels + column, u_sums, mask=mine)
    tl.store(along_one + program * channels + column, sums, mask=mine)


def squares(
    x: Tensor, keep: Tensor | None, groups: int, eps: float
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """``rms`` of each row's groups (None without), and the sums of u^2 over all rows and over kept ones."""
    plan = _Plan(x, groups)
    rms = plan.empty(plan.rows, groups) if groups else None
    total = plan.empty(plan.programs, plan.channels)
    kept = torch.empty_like(total) if keep is not None else None
    plan.launch(
        _squares, plan.programs, plan.x, keep, rms, total, kept, plan.rows, plan.channels, plan.size, eps,
        GROUPED=bool(groups), MASKED=keep is not None,
    )  # fmt: skip
    return rms, total.sum(0), None if kept is None else kept.sum(0)


def normalized(x: Tensor, rms: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * rms * scale + shift``, in x's dtype."""
    plan = _Plan(x, 0 if rms is None else rms.shape[1])
    output = torch.empty_like(plan.x)
    plan.launch(
        _normalized, plan.tiles, plan.x, rms, scale.contiguous(), shift.expand(plan.channels).contiguous(),
        output, plan.rows, plan.channels, plan.size, GROUPED=rms is not None,
    )  # fmt: skip
    return output


def gradients(
    grad: Tensor, x: Tensor, rms: Tensor | None, scale: Tensor, pull: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The approximate gradient of x, and the sums over the rows of grad u and of grad."""
    plan = _Plan(x, 0 if rms is None else rms.shape[1])
    grad_x = torch.empty_like(plan.x)
    along_u, along_one = plan.empty(2, plan.programs, plan.channels).unbind()
    plan.launch(
        _gradients, plan.programs, grad.contiguous(), plan.x, rms, scale.contiguous(), pull.contiguous(),
        grad_x, along_u, along_one, plan.rows, plan.channels, plan.size, GROUPED=rms is not None,
    )  # fmt: skip
    return grad_x, along_u.sum(0), along_one.sum(0)


class _Plan:
    """How rows are cut into tiles, and programs given them."""

    def __init__(self, x: Tensor, groups: int) -> None:
        self.x = x.contiguous()
        self.rows, self.channels = x.shape
        self.size = self.channels // groups if groups else min(self.channels, _CHUNK)
        self.groups = triton.cdiv(self.channels, self.size)
        self.columns = triton.next_power_of_2(self.size)
        self.tile_rows = max(1, _TILE // self.columns)
        self.tiles = triton.cdiv(self.rows, self.tile_rows)
        self.programs = min(self.tiles, max(1, _PROGRAMS // self.groups))

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.x.device)

    def launch(self, kernel: Any, programs: int, *arguments: Any, **constants: bool) -> None:
        with torch.cuda.device(self.x.device):
            kernel[programs, self.groups](
                *arguments, **constants, ROWS=self.tile_rows, COLUMNS=self.columns
            )  # fmt: skip
