"""Weight standardisation against the published forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Row
from trueup.nn import scaled_standardize_weight, standardize_weight


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    weight, direction = torch.randn(2, 512, 512, 3, 3)
    weight.requires_grad_()
    for what, peer, bound, ours, theirs in (
        ("standardize_weight", "the official form, a step at a time", 0.16, standardize_weight, naive),
        ("standardize_weight", "F.batch_norm over the filters", 0.65, standardize_weight, batch_norm),
        ("scaled_standardize_weight", "the same equation with var and mean", 0.85, scaled, naive_scaled),
    ):
        yield Row(
            what=f"{what} forward + backward, 512x512x3x3",
            peer=peer,
            bound=bound,
            ours=step(ours, weight, direction),
            theirs=step(theirs, weight, direction),
        )


def naive(weight: Tensor) -> Tensor:
    """Compute means axis by axis, then the variance, then the quotient."""
    centered = weight - weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
    std = (centered.flatten(1).var(1) + 1e-5).sqrt()
    return centered / std.view(-1, 1, 1, 1).expand_as(centered)


def batch_norm(weight: Tensor) -> Tensor:
    """Take filters for channels: the biased variance in one kernel."""
    filters = weight.reshape(1, len(weight), -1)
    return F.batch_norm(filters, None, None, training=True, eps=1e-6).view_as(weight)


def scaled(weight: Tensor) -> Tensor:
    return scaled_standardize_weight(weight, gamma=1.7)


def naive_scaled(weight: Tensor) -> Tensor:
    dims, fan_in = (1, 2, 3), weight[0].numel()
    mean, var = weight.mean(dims, keepdim=True), weight.var(dims, unbiased=False, keepdim=True)
    scale = (var * fan_in).clamp_min(1e-4).rsqrt() * 1.7
    return weight * scale - mean * scale


def step(function: Callable[[Tensor], Tensor], weight: Tensor, direction: Tensor) -> Callable[[], None]:
    def run() -> None:
        weight.grad = None
        function(weight).backward(direction)

    return run
