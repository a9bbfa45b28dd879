"""Weight standardisation: give every filter of a layer mean 0 and variance 1 in each forward pass.

Problem: with one or two images per batch batch normalisation does not work, and nets with batch-free
normalisation train less well. Idea: standardise the weights, with the gradient through mean and variance,
which makes the loss smoother. For each output filter w, over its n = fan-in values:

    standardised(w) = (w - mean(w)) / sqrt(var(w) + eps)

There is no gain: use it on layers followed by a normalisation, which has one.

Qiao, Wang, Liu, Shen, Yuille: Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization, 2019, arXiv 1903.10520. The variance is the unbiased one with eps under the root, as in the
authors' Batch-Channel-Normalization code. Their Weight-Standardization code adds eps to the root
(`eps_inside=False`), and the layers of BiT take the biased variance (`unbiased=False, eps=1e-6`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trueup._numerics.upcasting import upcast

__all__ = ["WeightStandardization", "standardize_weight"]


def standardize_weight(
    weight: Float[Tensor, "out ins *kernel"],
    *,
    eps: float = 1e-5,
    unbiased: bool = True,
    eps_inside: bool = True,
) -> Float[Tensor, "out ins *kernel"]:
    """Shift and scale each output filter to mean 0 and variance 1 over its fan-in.

    Args:
        weight: floating point, `(O, I/groups, *kernel)` or `(O, I)`: filters along dimension 0, as in
            `nn.Conv1d`, `2d`, `3d` and `nn.Linear` (but not in transposed convolutions).
        eps: >= 0. A constant filter gives zeros, and a gradient up to 1 / sqrt(eps) times the incoming one;
            with eps = 0 it gives NaN.
        unbiased: divide the sum of squares by n - 1, else by n.
        eps_inside: divide by `sqrt(var + eps)`, else by `sqrt(var) + eps`.

    Statistics are taken in float32 or better; the result has the weight's dtype.

    Raises:
        TypeError: the weight is not floating point.
        ValueError: fewer than two dimensions, a negative eps, or the unbiased variance of a fan-in of 1.

    Source: section 3 of the paper.

    >>> standardize_weight(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]), eps=0.0625)
    tensor([[-0.9701,  0.0000,  0.9701],
            [ 0.0000,  0.0000,  0.0000]])
    """
    _check(weight, eps, unbiased)
    filters = upcast(weight).flatten(1)
    n = filters.shape[1]
    if eps_inside:
        # Layer normalisation over the fan-in is one fast pass, with the biased variance. The unbiased one is
        # n/(n-1) times as large: eps and the result are scaled to match.
        ratio = (n - 1) / n if unbiased else 1.0
        constant = filters.new_full((n,), math.sqrt(ratio)) if unbiased else None
        standardized = F.layer_norm(filters, (n,), constant, None, eps * ratio)
    else:
        centered = filters - filters.mean(1, keepdim=True)
        # Centre twice: a constant filter leaves the mean's rounding error, which the division would amplify.
        centered = centered - centered.mean(1, keepdim=True)
        var = centered.square().sum(1, keepdim=True) / (n - 1 if unbiased else n)
        # sqrt has no derivative at 0, though the quotient has one.
        std = var.clamp_min(torch.finfo(var.dtype).tiny).sqrt()
        standardized = centered / (std + eps)
    return standardized.view_as(weight).to(weight.dtype)


class WeightStandardization(nn.Module):
    """Parametrisation of a weight by `standardize_weight`, for `trueup.nn.parametrize_weights`.

    The stored weight is the plain one: checkpoints of the official code load into
    `parametrizations.weight.original`, and assigning to the layer's `weight` stores the assigned value.

    Args:
        weight: the weight to parametrise; only its shape and dtype are used.
        eps, unbiased, eps_inside: see `standardize_weight`.

    Shape:
        (O, ...) -> the same, filters along dimension 0.

    Raises:
        TypeError, ValueError: as `standardize_weight`.

    The statistics are those of the weight, so they are equal on processes with equal weights and the same in
    training and evaluation. A layer that runs several times per step standardises its weight each time,
    except within `torch.nn.utils.parametrize.cached()`. For deployment see `trueup.nn.bake`.

    Source: Qiao et al. 2019 (arXiv 1903.10520), section 3.

    >>> from trueup.nn import parametrize_weights
    >>> conv = parametrize_weights(nn.Conv2d(3, 8, 3), WeightStandardization)
    >>> round(conv.weight[0].std().item(), 1)
    1.0
    """

    # The statistics are per output filter, so `parametrize_weights` refuses transposed convolutions.
    filters_first = True

    def __init__(
        self, weight: Tensor, *, eps: float = 1e-5, unbiased: bool = True, eps_inside: bool = True
    ) -> None:
        _check(weight, eps, unbiased)
        super().__init__()
        self.eps = eps
        self.unbiased = unbiased
        self.eps_inside = eps_inside

    def forward(self, weight: Float[Tensor, "out ins *kernel"]) -> Float[Tensor, "out ins *kernel"]:
        """Standardise the stored weight."""
        return standardize_weight(weight, eps=self.eps, unbiased=self.unbiased, eps_inside=self.eps_inside)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Store the weight itself; its mean and scale have no effect."""
        return weight

    def extra_repr(self) -> str:
        return f"eps={self.eps}, unbiased={self.unbiased}, eps_inside={self.eps_inside}"


def _check(weight: Tensor, eps: float, unbiased: bool) -> None:
    if not weight.is_floating_point():
        raise TypeError(
            f"weight standardisation needs a floating point weight; got {weight.dtype}: convert with .float()"
        )
    if weight.dim() < 2:
        raise ValueError(
            f"weight standardisation needs a weight (out, in, ...); got shape {tuple(weight.shape)}: "
            "skip this layer"
        )
    if not eps >= 0:
        raise ValueError(f"eps must not be negative; got {eps}")
    if unbiased and math.prod(weight.shape[1:]) < 2:
        raise ValueError(
            f"the unbiased variance needs at least 2 values per filter; got shape {tuple(weight.shape)}: "
            "skip this layer, or pass unbiased=False, which makes every such filter 0"
        )
