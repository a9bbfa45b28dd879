"""Beta calibration: a map of probabilities for scores that follow beta distributions.

Platt scaling assumes scores that are normally distributed within each class. Probabilities are bounded, and
Platt scaling can make well-calibrated ones worse. If the probabilities p of both classes follow beta
distributions, the calibrated probability is

    q = 1 / (1 + 1 / (e^c p^a / (1 - p)^b)),    so that    logit q = a log p - b log(1 - p) + c,

with a, b >= 0 for a map that increases. The identity is a = b = 1, c = 0. The three numbers minimize the
negative log-likelihood, as in a logistic regression on log p and -log(1 - p).

Meelis Kull, Telmo Silva Filho, Peter Flach, Beta calibration: a well-founded and easily implemented
improvement on logistic calibration for binary classifiers, AISTATS 2017. The official package drops a feature
whose coefficient is negative and fits again; here the bounds are part of the problem. Several classes are one
problem per class and division by the sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import optimize, special
from torch import Tensor
from torch.nn import functional as F

from trueup.calibration._one_vs_rest import OneVsRestCalibrator, on

__all__ = ["BetaCalibrator"]


# ---- the equation ----


def beta_calibration(
    p: Float[NDArray[np.float64], " rows"], a: float, b: float, c: float
) -> Float[NDArray[np.float64], " rows"]:
    """Return the calibrated probabilities of `p` in (0, 1)."""
    odds = np.exp(c) * p**a / (1 - p) ** b
    return np.asarray(1 / (1 + 1 / odds))


class BetaCalibrator(OneVsRestCalibrator):
    """Map the probability of each class by `logit q = a log p - b log(1 - p) + c` with `a, b >= 0`.

    `transform` returns log-probabilities.

    Attributes:
        coef_: a, b and c of each class, of shape `(C, 3)`; one row, for class 1, if there are two classes.
            If the classes can be separated, a minimum does not exist, and the coefficients are large.
        n_features_in_: number of classes; 1 for binary logits `(N,)`.

    Raises (`fit`): see `Calibrator.fit`.

    Source: equation 4 of Kull et al. (2017).

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> logits = 3 * torch.randn(50000, generator=generator)  # of class 1, twice too large
        >>> labels = (logits / 2).sigmoid().bernoulli(generator=generator).long()
        >>> BetaCalibrator().fit(logits, labels).coef_[0, :2].round(1).tolist()
        [0.5, 0.5]
    """

    def _fit_class(
        self, odds: NDArray[np.float64], positive: NDArray[np.bool_], weight: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        features = np.stack([special.log_expit(odds), -special.log_expit(-odds), np.ones_like(odds)], 1)
        share = weight / weight.sum()
        sign = np.where(positive, 1.0, -1.0)

        def loss(coef: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            margin = sign * (features @ coef)
            nll = -share @ special.log_expit(margin)
            return float(nll), -(share * sign * special.expit(-margin)) @ features

        found: Any = optimize.minimize(
            loss,
            np.array([1.0, 1.0, 0.0]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None), (0, None), (None, None)],
            options={"maxiter": 1000, "ftol": 0.0, "gtol": 1e-9},
        )
        return np.asarray(found.x)

    def _store(self, fitted: list[NDArray[np.float64]]) -> None:
        self.coef_ = np.stack(fitted)

    def _class_log_odds(self, odds: Tensor) -> Tensor:
        a, b, c = on(self.coef_, odds).unbind(1)
        return a * F.logsigmoid(odds) - b * F.logsigmoid(-odds) + c
