"""Full-batch descent on linear problems in steps so large that logistic regression becomes a perceptron.

Problem: which step size finds a separating hyperplane by gradient descent on the logistic loss? Any, and huge
ones do best. Idea: as lr grows, the iterate divided by lr tends to a batch perceptron's, which weighs samples
1 where the margin is negative, 1/2 where it is zero. With z_i = y_i a_i, m_i = z_i . theta and
s_i = sigmoid(-m_i), a step is theta <- theta + lr sum_i c_i z_i with

    lrgd: c_i = s_i / n,                       batch_perceptron: c_i = [m_i < 0] / n, lr = 1
    normalized: c_i = s_i / sum_j s_j,         normalized_batch_perceptron: c_i = [m_i < 0] / #wrong, lr = 1

From theta = 0, with R the largest |a_i| and mu the margin, lrgd and its limit need up to n R^2 / mu^2 steps;
the normalised ones R^2 / mu^2 + 2 log(2n - 1) / (lr mu^2) and R^2 / mu^2. Stop when all margins are positive.

Tyurin, AAAI 2025, arXiv 2412.08424; there is no official code. Comparison modes: `inverse_loss` divides the
gradient by the loss (Zhang et al. 2025, arXiv 2504.04105), `unit_gradient` by its own norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from trueup.optim._normalized_gd import misclassification_weights
from trueup.optim._validation import check_step_size

Mode = Literal[
    "normalized", "lrgd", "batch_perceptron", "normalized_batch_perceptron", "inverse_loss", "unit_gradient"
]


def step_coefficients(
    margins: Float[Tensor, " samples"], mode: Mode, weight: Float[Tensor, " samples"]
) -> Float[Tensor, " samples"]:
    """Return the coefficient c_i of each z_i in a step of size 1; of `unit_gradient`, before normalisation.

    >>> step_coefficients(torch.tensor([-1.0, 0.0, 2.0]), "normalized_batch_perceptron", torch.ones(3))
    tensor([0.6667, 0.3333, 0.0000])
    """
    if mode in ("normalized", "unit_gradient"):  # scaling cancels in the norm: this is for stability
        return misclassification_weights(margins, weight)
    if mode == "lrgd":
        return weight * torch.sigmoid(-margins) / weight.sum()
    if mode == "inverse_loss":
        # log(softplus(-m)), which is -m to the last digit where softplus underflows.
        logs = torch.where(margins > 40, -margins, F.softplus(-margins.clamp(max=40)).log()) + weight.log()
        return (F.logsigmoid(-margins) + weight.log() - logs.max()).exp() / (logs - logs.max()).exp().sum()
    wrong = weight * torch.heaviside(-margins, margins.new_full((), 0.5))
    if mode == "batch_perceptron":
        return wrong / weight.sum()
    total = wrong.sum()
    return wrong / torch.where(total > 0, total, 1.0)


class Iterate(NamedTuple):
    """The iterate `theta`, of shape `(features,)`, and its margins, of shape `(samples,)`."""

    theta: Float[Tensor, " features"]
    margins: Float[Tensor, " samples"]


def large_step_descent(
    Z: Float[Tensor, "samples features"],
    lr: float = 100.0,
    mode: Mode = "normalized",
    *,
    weight: Float[Tensor, " samples"] | None = None,
    start: Float[Tensor, " features"] | None = None,
) -> Iterator[Iterate]:
    """Yield the iterates theta_0, theta_1, ... without end; stop at the first that separates, for instance.

    After separation the perceptrons stand still. The other modes go on: `normalized` towards a larger margin
    in the long run, though single steps may misclassify samples again.

    Args:
        Z: rows y_i a_i, labels -1 or +1 times features. No intercept is added: append a constant feature.
        lr: step size, above 0. Iterates have the size lr x features, so use float64 beyond 1e6. The
            perceptrons ignore it.
        mode: which coefficients c_i to use; the head of this file lists them.
        weight: one weight per sample, not negative; None means all 1.
        start: theta_0; None means zeros, from which the guarantees hold.

    Raises:
        TypeError: Z is no floating-point tensor.
        ValueError: Z is not a non-empty table, lr is not above 0, the mode is unknown, or a shape is wrong.

    Source: the algorithms of the paper: LR+GD, Normalized LR+GD and the two batch perceptrons.

    >>> X, y = worst_case_problem(1000)
    >>> for steps, (theta, margins) in enumerate(large_step_descent(y[:, None] * X, lr=100.0)):
    ...     if margins.min() > 0:
    ...         break
    >>> steps
    2
    """
    if not isinstance(Z, Tensor) or not Z.is_floating_point():
        got = str(Z.dtype) if isinstance(Z, Tensor) else type(Z).__name__
        raise TypeError(f"Z must be a floating-point tensor, labels -1 or +1 times features; got {got}")
    if Z.ndim != 2 or 0 in Z.shape:
        raise ValueError(f"Z must have shape (samples, features), neither 0; got {tuple(Z.shape)}")
    check_step_size(lr)
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {get_args(Mode)}; got {mode!r}")
    for name, vector, length in (("weight", weight, len(Z)), ("start", start, Z.shape[1])):
        if vector is not None and vector.shape != (length,):
            raise ValueError(f"{name} must have shape ({length},); got {tuple(vector.shape)}")
    weight = Z.new_ones(len(Z)) if weight is None else weight.to(Z.dtype)
    return _descend(Z, lr, mode, weight, Z.new_zeros(Z.shape[1]) if start is None else start.to(Z))


@torch.no_grad()
def _descend(Z: Tensor, lr: float, mode: Mode, weight: Tensor, theta: Tensor) -> Iterator[Iterate]:
    if mode in ("batch_perceptron", "normalized_batch_perceptron"):
        lr = 1.0
    while True:
        margins = Z @ theta
        yield Iterate(theta, margins)
        direction = Z.T @ step_coefficients(margins, mode, weight)
        if mode == "unit_gradient":
            # Scaled first, since its square may overflow or underflow.
            direction = F.normalize(
                direction / direction.abs().max().clamp(min=torch.finfo(Z.dtype).tiny), dim=0
            )
        theta = theta + lr * direction


def worst_case_problem(
    n: int, *, dtype: torch.dtype = torch.float64
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Return data on which gradient descent with large steps needs a number of steps linear in n.

    One sample (0.5, -1) has the label +1, n - 1 samples (-0.5, -1) have -1. The margin is 0.5, by theta =
    (1, 0), and every sample has the squared norm 1.25, so the normalised method needs at most
    5 + 8 log(2n - 1) / lr steps.

    Args:
        n: number of samples, at least 2.
        dtype: of features and labels.

    Returns:
        Features of shape `(n, 2)` and labels -1 or +1 of shape `(n,)`.

    Raises:
        ValueError: n is below 2.

    Source: theorem 5.1 of the paper; n = 1000 gives its table 1.

    >>> worst_case_problem(3)[1]
    tensor([ 1., -1., -1.], dtype=torch.float64)
    """
    if n < 2:
        raise ValueError(f"worst_case_problem needs n >= 2, one sample of each class; got {n}")
    X = torch.tensor([[-0.5, -1.0]], dtype=dtype).repeat(n, 1)
    y = torch.full((n,), -1.0, dtype=dtype)
    X[0, 0], y[0] = 0.5, 1.0
    return X, y
