"""Platt scaling: a logistic regression on the log-odds of each class.

    logit q = a logit p + c

with the coefficients of least negative log-likelihood. So that separable classes do not drive them to
infinity, the targets are not 0 and 1 but

    t_+ = (n_+ + 1) / (n_+ + 2),    t_- = 1 / (n_- + 2),

where n_+ and n_- are the weighted numbers of samples of the class and of all others.

John Platt, Probabilistic outputs for support vector machines and comparisons to regularized likelihood
methods, 1999. scikit-learn's LogisticRegression does the work. Several classes are one problem per class and
division by the sum.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from trueup.calibration._one_vs_rest import OneVsRestCalibrator, on

__all__ = ["PlattCalibrator"]


# ---- the equation ----


def smoothed_targets(
    positive: Bool[NDArray[np.bool_], " rows"], weight: Float[NDArray[np.float64], " rows"]
) -> Float[NDArray[np.float64], " rows"]:
    """Return Platt's targets, which are strictly between 0 and 1."""
    positives, negatives = weight[positive].sum(), weight[~positive].sum()
    targets = np.where(positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    return np.asarray(targets)


class PlattCalibrator(OneVsRestCalibrator):
    """Map the log-odds of each class by a logistic regression on smoothed targets.

    `transform` returns log-probabilities.

    Attributes:
        coef_: slope and intercept of each class, of shape `(C, 2)`; one row, for class 1, if there are two
            classes.
        n_features_in_: number of classes; 1 for binary logits `(N,)`.

    Raises (`fit`): see `Calibrator.fit`.

    Source: Platt (1999), section 2.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> logits = 3 * torch.randn(2000, generator=generator)  # of class 1, twice too large
        >>> labels = (logits / 2).sigmoid().bernoulli(generator=generator).long()
        >>> PlattCalibrator().fit(logits, labels).coef_.round(1)
        array([[0.5, 0. ]])
    """

    def _fit_class(
        self, odds: NDArray[np.float64], positive: NDArray[np.bool_], weight: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        target = smoothed_targets(positive, weight)
        # LogisticRegression takes hard labels only: each sample counts as both, with the weights t and 1 - t.
        model = LogisticRegression(C=np.inf, tol=1e-9, max_iter=1000)
        model.fit(
            np.concatenate([odds, odds])[:, None],
            np.repeat([1, 0], len(odds)),
            np.concatenate([weight * target, weight * (1 - target)]),
        )
        return np.array([model.coef_[0, 0], model.intercept_[0]])

    def _store(self, fitted: list[NDArray[np.float64]]) -> None:
        self.coef_ = np.stack(fitted)

    def _class_log_odds(self, odds: Tensor) -> Tensor:
        slope, intercept = on(self.coef_, odds).unbind(1)
        return slope * odds + intercept
