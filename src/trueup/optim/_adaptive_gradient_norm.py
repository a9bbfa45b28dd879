"""AdaGN, adaptive gradient norm: scale a gradient by running averages of its norm.

A drifting gradient norm makes Adam's step size drift. Per tensor, at its t-th step, with norm n:

    N1 <- gamma1 N1 + (1 - gamma1) n,    N2 <- gamma2 N2 + (1 - gamma2) n^2
    g <- g / n * (N1 / (1 - gamma1^t)) / (sqrt(N2 / (1 - gamma2^t)) + eps)

Huang et al.: Stable-SPAM, 2025, arXiv 2502.17055, section 4.2. The averages are kept in float32 or better.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from trueup.optim._bias_correction import Scalar, bias_correction
from trueup.optim._gradient_norms import norms_of
from trueup.optim._gradient_transform import GradientTransform
from trueup.optim._validation import check_decays, check_range


def norm_factor(
    norm: Scalar, first: Scalar, second: Scalar, gammas: tuple[Any, float], eps: float, t: Scalar
) -> tuple[Scalar, Scalar, Scalar]:
    """Return the new averages N1 and N2, and the factor for the gradient; for numbers or tensors."""
    first = gammas[0] * first + (1 - gammas[0]) * norm
    second = gammas[1] * second + (1 - gammas[1]) * norm**2
    root = (second / bias_correction(gammas[1], t)) ** 0.5 + eps
    # A norm of 0 is a gradient of zeros, which any finite factor leaves unchanged.
    return first, second, first / bias_correction(gammas[0], t) / (root + (root == 0)) / (norm + (norm == 0))


class AdaGN(GradientTransform):
    """Scale a gradient to the norm (average norm) / (root of the average squared norm), about 1 if steady.

    A gradient with NaN or infinity is left unchanged and does not enter the averages.

    Args:
        optimizer: the optimizer whose steps it precedes.
        gammas: decay of the average norm and of the average squared norm, each in [0, 1).
        eps: added to the root, at least 0.

    Raises:
        ValueError: `gammas` or `eps` are out of range.

    Source: Huang et al. 2025, equations of section 4.2.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0)
    >>> transform = AdaGN(optimizer)
    >>> weight.grad = torch.tensor([300.0, 400.0])
    >>> optimizer.step()
    >>> weight.data
    tensor([-0.6000, -0.8000])
    """

    state_names = ("step", "norm", "norm_sq")

    def __init__(
        self, optimizer: Optimizer, gammas: tuple[float, float] = (0.7, 0.9), eps: float = 1e-8
    ) -> None:
        check_decays("gammas", gammas, 2)
        check_range("eps", eps, 0)
        super().__init__(optimizer)
        self.gammas = gammas
        self.eps = eps

    def _apply(self, params: list[Tensor], grads: list[Tensor], *state: Tensor) -> tuple[Tensor, ...]:
        step, first, second = state
        norm = norms_of(grads)
        finite = norm.square().isfinite()
        step = step + finite
        new_first, new_second, factor = norm_factor(norm, first, second, self.gammas, self.eps, step)
        for grad, own in zip(grads, torch.where(finite, factor, 1.0), strict=True):
            # In float32 or better: a factor may be beyond float16.
            scaled = grad.to(norm.dtype).mul_(own)
            if scaled.dtype != grad.dtype:
                grad.copy_(scaled)
        return step, torch.where(finite, new_first, first), torch.where(finite, new_second, second)
