"""Means and variances for the normalisation layers.

They are computed in float32 or better, whatever the input's dtype. No variance is the small difference of two
large numbers: it comes from deviations, or from the moments of smaller groups k of equal size,

    mean = mean_k(mean_k)        var = mean_k(var_k + (mean_k - mean)^2).

For use inside autograd Functions: `group_moments` is not made to be differentiated.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from trueup._numerics.chunking import sample_chunks
from trueup._numerics.upcasting import upcast

__all__ = ["across_processes", "group_moments", "pool"]


def group_moments(
    x: Float[Tensor, "batch channels length"], groups: int
) -> tuple[Float[Tensor, "batch groups"], Float[Tensor, "batch groups"]]:
    """Return mean and biased variance of each sample's groups of `channels / groups * length` values.

    With as many groups as channels these are the moments of each instance. For a mean of 100 and a standard
    deviation of 1e-2, the relative error of the variance is 1e-5, where one pass in float32 has 1e-3.
    """
    _, channels, length = x.shape
    moments = []
    # Two passes, the second over what the first left in the cache: on a CPU ten times as fast as `var_mean`.
    for (chunk,) in sample_chunks(x):
        values = upcast(chunk).reshape(chunk.shape[0], groups, channels // groups * length)
        mean = values.mean(2)
        deviations = values - mean.unsqueeze(2)
        moments.append((mean, deviations.mul_(deviations).mean(2)))  # vmap has no rule for `square_`
    means, variances = zip(*moments, strict=True)
    return torch.cat(means), torch.cat(variances)


def pool(
    mean: Tensor, var: Tensor, dim: int | tuple[int, ...], *, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of the union of groups of equal size along `dim`; differentiable."""
    center = mean.mean(dim, keepdim=True)
    pooled_var = (var + (mean - center).square()).mean(dim, keepdim=keepdim)
    return center if keepdim else mean.mean(dim), pooled_var


def across_processes(
    mean: Tensor, var: Tensor, count: int, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Return mean, biased variance and count of the union of the values of all processes of `group`.

    Two all-reduces, so that the variance comes from deviations.

    Args:
        mean, var: of this process's values, one of each per channel.
        count: values per channel here. It may differ between processes, and be 0; if it is 0 in all of them,
            the moments are 0 too.
        group: None is this process alone, and returns the arguments as they are.
    """
    if group is None:
        return mean, var, count
    empty = count == 0
    total = torch.cat([mean.new_full((1,), count), torch.zeros_like(mean) if empty else mean * count])
    dist.all_reduce(total, group=group)
    at_least_one = total[0].clamp(min=1)
    center = total[1:] / at_least_one
    squares = torch.zeros_like(var) if empty else (var + (mean - center).square()) * count
    dist.all_reduce(squares, group=group)
    return center, squares / at_least_one, total[0]
