"""Means and variances of groups of values: the one kernel beneath the normalisation layers.

Everything is taken in float32 or better whatever the input's dtype, and no variance is ever the small
difference of two large numbers: it comes from deviations, or from smaller groups' variances put together,

    mean = mean_k(mean_k)        var = mean_k(var_k + (mean_k - mean)^2)        for groups k of equal size.

These are plain tensors for use inside autograd Functions; the moments of `group_moments` carry no gradient.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "across_processes",
    "affine_planes",
    "group_moments",
    "pieces",
    "plane_sums",
    "pool",
    "widen",
]


def widen(t: Tensor) -> Tensor:
    """At least float32: half types have too few bits for a mean of squares; float16 overflows at 65504."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def pieces(x: Tensor, elements: int, whole: int) -> int:
    """How many of ``whole`` pieces of so many elements to work on at once: what stays in a CPU's cache.

    All of them elsewhere, where a kernel's launch costs more than its memory.
    """
    if not x.is_cpu or torch.compiler.is_compiling():
        return whole
    return max(2**17 // max(elements, 1), 1)


def group_moments(
    x: Float[Tensor, "batch channels length"], groups: int
) -> tuple[Float[Tensor, "batch groups"], Float[Tensor, "batch groups"]]:
    """Mean and biased variance of each sample's groups of ``channels / groups x length`` values.

    ``groups`` equal to the number of channels gives the moments of each plane. The variance is right to 1e-5
    of itself for a mean of 100 and a standard deviation of 1e-2, where one pass in float32 is to 1e-3.
    """
    samples, channels, length = x.shape
    moments = []
    # Two passes, the second over what the first left in the cache: on a CPU ten times as fast as `var_mean`.
    for part in x.split(pieces(x, channels * length, samples)):
        values = widen(part).reshape(len(part), groups, channels // groups * length)
        mean = values.mean(2)
        moments.append((mean, (values - mean.unsqueeze(2)).square_().mean(2)))
    means, variances = zip(*moments, strict=True)
    return torch.cat(means), torch.cat(variances)


def pool(
    mean: Tensor, var: Tensor, dim: int | tuple[int, ...], *, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the union of groups of equal size along ``dim``; differentiable."""
    center = mean.mean(dim, keepdim=True)
    spread = (var + (mean - center).square()).mean(dim, keepdim=keepdim)
    return center if keepdim else mean.mean(dim), spread


def affine_planes(
    x: Float[Tensor, "batch channels length"],
    center: Float[Tensor, "batch channels"],
    scale: Float[Tensor, "batch channels"],
    shift: Float[Tensor, "batch channels"],
) -> Float[Tensor, "batch channels length"]:
    """``(x - center) * scale + shift`` in one pass, in x's dtype.

    Batch normalisation by given statistics is torch's fastest kernel for this on a CPU.
    """
    planes = x.reshape(1, -1, x.shape[-1])
    one = torch.ones_like(center).flatten()
    y = F.batch_norm(planes, center.flatten(), one, scale.flatten(), shift.flatten(), eps=0.0)
    # A view made inside an autograd Function may not be changed in place, as a `ReLU(inplace=True)` after the
    # layer does. This is none to autograd, as in torch's own matmul.
    return cast(Tensor, torch.ops.aten._unsafe_view(y, x.shape))


def plane_sums(
    grad: Float[Tensor, "batch channels length"],
    x: Float[Tensor, "batch channels length"],
    center: Float[Tensor, "batch channels"],
) -> tuple[Float[Tensor, "batch channels"], Float[Tensor, "batch channels"]]:
    """Sums over each plane of ``grad * (x - center)`` and of ``grad``, in float32 or better; both contiguous.

    The center is taken off before the product, so that it may be large beside the deviations from it.
    """
    planes, length = center.numel(), x.shape[-1]
    if x.numel() == 0:  # which torch's kernel divides by
        return torch.zeros_like(center), torch.zeros_like(center)
    # The gradients of weight and bias of a batch normalisation with a channel per plane are these sums.
    _, along_x, along_one = torch.ops.aten.native_batch_norm_backward(
        widen(grad).contiguous().view(1, planes, length),
        widen(x).contiguous().view(1, planes, length),
        torch.ones_like(center).flatten(),
        None,
        None,
        center.flatten(),
        torch.ones_like(center).flatten(),
        True,
        0.0,
        [False, True, True],
    )
    return along_x.view_as(center), along_one.view_as(center)


def across_processes(
    mean: Tensor, var: Tensor, count: int, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Mean, biased variance and count of the union of what the processes of ``group`` hold.

    ``count`` values stand behind each of this process's means and variances; it may differ between processes,
    and be 0. Two rounds of sums, so that the variance comes from deviations. None: one process, unchanged.
    """
    if group is None:
        return mean, var, count
    empty = count == 0
    total = torch.cat([mean.new_full((1,), count), torch.zeros_like(mean) if empty else mean * count])
    dist.all_reduce(total, group=group)
    center = total[1:] / total[0]
    spread = torch.zeros_like(var) if empty else (var + (mean - center).square()) * count
    dist.all_reduce(spread, group=group)
    return center, spread / total[0], total[0]
