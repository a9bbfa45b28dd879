"""AdaClip, adaptive spike-aware clipping: scale down entries above the average largest entry.

A spike in a gradient inflates Adam's second moment for hundreds of steps. Per tensor, at its t-th step, with
largest entry a, entries above the limit are multiplied by limit / a:

    M <- g M + (1 - g) a,    limit = M / (1 - g^t)

Huang et al.: Stable-SPAM, 2025, arXiv 2502.17055, section 4.1. The average is kept in float32 or better: in
bfloat16 one with weight 0.001 would not move.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from trueup.optim._bias_correction import Scalar, bias_correction
from trueup.optim._gradient_norms import largest_entries
from trueup.optim._gradient_transform import GradientTransform
from trueup.optim._validation import check_range


def clip_limit(largest: Scalar, average: Scalar, gamma: float, t: Scalar) -> tuple[Scalar, Scalar]:
    """Return the new average M of the largest entry and the limit of this step; for numbers or tensors."""
    average = gamma * average + (1 - gamma) * largest
    return average, average / bias_correction(gamma, t)


def clipped(grad: Tensor, limit: float | Tensor, ratio: float | Tensor) -> Tensor:
    """Return the gradient with every entry above the limit multiplied by `ratio` = limit / largest."""
    # This jumps: an entry at the limit stays, and the next number above it becomes limit^2 / largest. Where
    # an entry lies within rounding of the limit, correct implementations differ in that weight by up to about
    # lr (1 - limit / largest); all else agrees to rounding. So limits must be as exact as floats are: with
    # 1 - 0.999^t in plain float32, 1e-5 off, entries of one tensor in 7000 change sides at each step.
    return torch.where(grad.abs() > limit, grad * ratio, grad)


class AdaClip(GradientTransform):
    """Scale down the entries of a gradient that are above the running average of its largest entry.

    Scaled entries keep their ratio to the largest, which becomes the limit. A gradient with NaN or infinity
    is left unchanged and does not enter the average.

    Args:
        optimizer: the optimizer whose steps it precedes.
        gamma: decay of the average, in [0, 1).

    Raises:
        ValueError: `gamma` is out of range.

    Source: Huang et al. 2025, equations of section 4.1.

    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0)
    >>> transform = AdaClip(optimizer, gamma=0.5)
    >>> for gradient in ([1.0, 0.5, 0.0], [10.0, 5.0, 1.0]):
    ...     weight.grad = torch.tensor(gradient)
    ...     optimizer.step()
    >>> weight.grad  # the limit is (0.25 x 1 + 0.5 x 10) / 0.75
    tensor([7., 5., 1.])
    """

    state_names = ("step", "max")

    def __init__(self, optimizer: Optimizer, gamma: float = 0.999) -> None:
        check_range("gamma", gamma, 0, 1, open_end=True)
        super().__init__(optimizer)
        self.gamma = gamma

    def _apply(self, params: list[Tensor], grads: list[Tensor], *state: Tensor) -> tuple[Tensor, ...]:
        step, average = state
        largest = largest_entries(grads)
        finite = largest.isfinite()
        step = step + finite
        new, limit = clip_limit(largest, average, self.gamma, step)
        ratio = limit / (largest + (largest == 0))
        # No entry is above infinity.
        limit = torch.where(finite, limit, math.inf)
        for grad, most, factor in zip(grads, limit, ratio, strict=True):
            grad.mul_(torch.where(grad.abs().to(most.dtype) > most, factor, 1.0))
        return step, torch.where(finite, new, average)
