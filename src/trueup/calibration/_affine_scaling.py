"""Vector and matrix scaling: an affine map of the logits, chosen on held-out data.

Temperature scaling has one number for all classes, so it cannot repair a network that is over-confident in
one class and under-confident in another. An affine map of the logits can:

    p = softmax(W z + b),    W diagonal (vector scaling) or full (matrix scaling)

W and b minimize the mean negative log-likelihood of held-out labels, which is convex in them. A full W has
C^2 + C parameters and overfits where classes are many and held-out samples few: `ridge` penalizes its
distance from the identity,

    loss = mean_i -log p_{i, y_i} + ridge / 2 (|W - I|^2 + |b|^2).

Chuan Guo, Geoff Pleiss, Yu Sun, Kilian Weinberger, On Calibration of Modern Neural Networks, ICML 2017,
arXiv 1706.04599, section 4.2. There is no official code of these two. Softmax leaves the sum of b, and the
column sums of W, undetermined; here they stay those of the identity.
"""

from __future__ import annotations

import math
import numbers
import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import optimize
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from trueup._numerics.chunking import sample_chunks
from trueup.calibration._calibrator import Calibrator

__all__ = ["MatrixScaler", "VectorScaler"]


# ---- the equation ----


def affine_nll(
    logits: Float[Tensor, "rows classes"],
    labels: Int[Tensor, " rows"],
    weight: Float[Tensor, "classes classes"],
    bias: Float[Tensor, " classes"],
    ridge: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the penalized mean negative log-likelihood of the labels under softmax(W z + b)."""
    log_probs = (logits @ weight.mT + bias).log_softmax(1)
    change = weight - torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    penalty = ridge / 2 * (change.square().sum() + bias.square().sum())
    return penalty - log_probs.gather(1, labels[:, None]).mean()


_SOLVER = {"maxcor": 30, "maxfun": 10**9, "ftol": 0.0, "gtol": 1e-9}


class _AffineScaler(Calibrator):
    """Fit the affine map by L-BFGS, in the parameters `weight_` and `bias_`."""

    def __init__(self, *, ridge: float = 0.0, max_iter: int = 1000) -> None:
        self.ridge = ridge
        self.max_iter = max_iter

    def _identity(self, classes: int) -> NDArray[np.float64]:
        raise NotImplementedError

    def _affine(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        raise NotImplementedError

    def _weight_gradient(self, residual: Tensor, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def _map(self, rows: Tensor) -> Tensor:
        weight, bias = (
            torch.as_tensor(a, dtype=rows.dtype, device=rows.device) for a in (self.weight_, self.bias_)
        )
        return self._affine(rows, weight, bias)

    def _fit(self, rows: Tensor, labels: Tensor, weight: Tensor | None) -> None:
        if not isinstance(self.ridge, numbers.Real) or not 0 <= self.ridge < math.inf:
            raise ValueError(f"ridge must be a finite number, 0 or more; got {self.ridge!r}")
        if not isinstance(self.max_iter, numbers.Integral) or self.max_iter < 1:
            raise ValueError(f"max_iter must be an integer, 1 or more; got {self.max_iter!r}")
        if not rows.isfinite().all():
            raise ValueError(
                f"{type(self).__name__} needs finite logits; got -inf: clamp them, for instance at -100"
            )
        weight = torch.ones_like(labels, dtype=torch.float64) if weight is None else weight
        share = weight / weight.sum()
        identity = self._identity(rows.shape[1])
        bias = np.zeros(rows.shape[1])
        # Steps in units of the logits' size make L-BFGS converge in a few steps.
        size = max(float(rows.double().square().mean().sqrt()), 1e-12)
        if not math.isfinite(size):
            raise ValueError(
                f"{type(self).__name__} cannot square logits of up to {float(rows.abs().max()):.2g}: "
                "divide them by a constant"
            )

        def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            W, b = theta[: identity.size].reshape(identity.shape) / size, theta[identity.size :]
            W_tensor, b_tensor = (torch.from_numpy(a).to(rows.device) for a in (W, b))
            nll, W_gradient, b_gradient = 0.0, 0.0, 0.0
            for z, y, s in sample_chunks(rows, labels, share):
                z = z.double()
                log_probs = self._affine(z, W_tensor, b_tensor).log_softmax(1)
                nll -= float(s @ log_probs.gather(1, y[:, None])[:, 0])
                residual = log_probs.exp_()
                residual[torch.arange(len(y)), y] -= 1
                residual *= s[:, None]
                W_gradient = W_gradient + self._weight_gradient(residual, z).cpu().numpy()
                b_gradient = b_gradient + residual.sum(0).cpu().numpy()
            change = W - identity
            nll += self.ridge / 2 * float((change**2).sum() + (b**2).sum())
            gradients = (W_gradient + self.ridge * change) / size, b_gradient + self.ridge * b
            return nll, np.concatenate([g.ravel() for g in gradients])

        found: Any = optimize.minimize(
            loss,
            np.concatenate([size * identity.ravel(), bias]),
            jac=True,
            method="L-BFGS-B",
            options=_SOLVER | {"maxiter": self.max_iter},
        )
        self.weight_: NDArray[np.float64] = found.x[: identity.size].reshape(identity.shape) / size
        self.bias_: NDArray[np.float64] = found.x[identity.size :]
        self.n_iter_ = int(found.nit)
        missing = rows.shape[1] - len(labels[share > 0].unique())
        if self.ridge == 0 and missing:
            warnings.warn(
                f"{type(self).__name__} has no held-out sample of {missing} of {rows.shape[1]} classes, so "
                "that the loss has no minimum and gives them no probability: pass ridge > 0, or more data",
                ConvergenceWarning,
                stacklevel=3,
            )
        elif self.ridge == 0 and (self._map(rows).argmax(1) == labels)[share > 0].all():
            warnings.warn(
                f"{type(self).__name__} separates the classes of the held-out data, so that the loss has no "
                "minimum and the result is over-confident: pass ridge > 0, or more data",
                ConvergenceWarning,
                stacklevel=3,
            )
        elif (slope := np.abs(found.jac).max()) > 1e-6:
            warnings.warn(
                f"{type(self).__name__} did not converge in {self.max_iter} iterations; the largest slope is "
                f"{slope:.2g}: raise max_iter",
                ConvergenceWarning,
                stacklevel=3,
            )


class VectorScaler(_AffineScaler):
    """Multiply each class's logit by its own weight and add its own bias.

    Args:
        ridge: strength of the penalty on the distance from the identity, 0 or more.
        max_iter: largest number of iterations of L-BFGS.

    Attributes:
        weight_: of shape `(C,)`.
        bias_: of shape `(C,)`, with a sum of zero.
        n_iter_: number of iterations.
        n_features_in_: number of classes; 1 for binary logits `(N,)`.

    Raises: see `fit`, which also raises ValueError for parameters out of range and for logits of -inf.
    It warns with ConvergenceWarning if the map separates the classes or a class has no sample, since the loss
    then has no minimum, and if `max_iter` iterations do not suffice.

    Source: section 4.2 of Guo et al. (2017).

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> logits = torch.randn(20000, 3, generator=generator)
        >>> right = logits * torch.tensor([0.5, 1.0, 2.0])
        >>> labels = right.softmax(1).multinomial(1, generator=generator)[:, 0]
        >>> VectorScaler().fit(logits, labels).weight_.round(1)
        array([0.5, 1. , 2. ])
    """

    def _identity(self, classes: int) -> NDArray[np.float64]:
        return np.ones(classes)

    def _affine(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.addcmul(bias, rows, weight)

    def _weight_gradient(self, residual: Tensor, rows: Tensor) -> Tensor:
        return (residual * rows).sum(0)


class MatrixScaler(_AffineScaler):
    """Multiply the logits by a full matrix and add a bias.

    There are C^2 + C parameters: with more than a few classes, choose `ridge` on held-out data.

    Args:
        ridge: strength of the penalty on the distance from the identity, 0 or more.
        max_iter: largest number of iterations of L-BFGS.

    Attributes:
        weight_: of shape `(C, C)`; calibrated logits are `logits @ weight_.T + bias_`.
        bias_: of shape `(C,)`, with a sum of zero.
        n_iter_: number of iterations.
        n_features_in_: number of classes; 1 for binary logits `(N,)`.

    Raises: as `VectorScaler`.

    Source: section 4.2 of Guo et al. (2017).

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> logits = torch.randn(2000, 3, generator=generator)
        >>> labels = (2 * logits).softmax(1).multinomial(1, generator=generator)[:, 0]
        >>> scaler = MatrixScaler(ridge=1e-3).fit(logits, labels)
        >>> scaler.score(logits, labels) > VectorScaler().fit(logits, labels).score(logits, labels)
        True
    """

    def _identity(self, classes: int) -> NDArray[np.float64]:
        return np.eye(classes)

    def _affine(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.addmm(bias, rows, weight.mT)

    def _weight_gradient(self, residual: Tensor, rows: Tensor) -> Tensor:
        return residual.mT @ rows
