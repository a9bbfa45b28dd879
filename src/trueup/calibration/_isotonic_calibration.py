"""Isotonic calibration: the increasing function of the log-odds that fits the labels best.

    q = argmin_{f increasing}  sum_i w_i (f(logit p_i) - [y_i = c])^2

The solution is a step function at the held-out samples; between them it is interpolated linearly, and outside
it is constant.

Bianca Zadrozny, Charles Elkan, Transforming classifier scores into accurate multiclass probability estimates,
KDD 2002. scikit-learn's IsotonicRegression does the work. Several classes are one problem per class and
division by the sum.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from trueup.calibration._one_vs_rest import OneVsRestCalibrator, on

__all__ = ["IsotonicCalibrator"]


# ---- the equation ----


def interpolate(
    x: Float[Tensor, "problems rows"],
    knots: Float[Tensor, "problems knots"],
    values: Float[Tensor, "problems knots"],
) -> Float[Tensor, "problems rows"]:
    """Interpolate linearly between knots; the function is constant below the first and above the last."""
    right = torch.searchsorted(knots, x).clamp(1, knots.shape[1] - 1)
    x0, x1 = knots.gather(1, right - 1), knots.gather(1, right)
    y0, y1 = values.gather(1, right - 1), values.gather(1, right)
    return torch.lerp(y0, y1, ((x - x0) / (x1 - x0)).clamp(0, 1))


class IsotonicCalibrator(OneVsRestCalibrator):
    """Map the log-odds of each class by an increasing function, fitted by isotonic regression.

    `transform` returns log-probabilities, which are -inf where the function is zero, and log-odds for binary
    logits `(N,)`, which are infinite where the function is 0 or 1. It has no gradient.

    Attributes:
        knots_: log-odds at which the function of each class bends, of shape `(C, knots)`; one row, for
            class 1, if there are two classes. Rows with fewer knots are filled up on the right.
        values_: the function at the knots.
        n_features_in_: number of classes; 1 for binary logits `(N,)`.

    Raises: see `fit`.

    Source: Zadrozny and Elkan (2002), section 3.

    Example:
        >>> import torch
        >>> logits = torch.tensor([-2.0, -1.0, 0.0, 1.0])  # of class 1
        >>> calibrator = IsotonicCalibrator().fit(logits, torch.tensor([0, 1, 0, 1]))
        >>> calibrator.predict_proba(logits)
        tensor([0.0000, 0.5000, 0.5000, 1.0000])
    """

    def _fit_class(
        self, odds: NDArray[np.float64], positive: NDArray[np.bool_], weight: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(odds, positive, weight)
        return np.stack([model.X_thresholds_, model.y_thresholds_])

    def _store(self, fitted: list[NDArray[np.float64]]) -> None:
        most = 1 + max(knots.shape[1] for knots in fitted)
        filled = []
        for knots in fitted:
            more = most - knots.shape[1]
            last, value = knots[:, -1]
            filled.append(np.concatenate([knots, [last + 1 + np.arange(more), np.full(more, value)]], axis=1))
        self.knots_, self.values_ = np.stack(filled, axis=1)

    @torch.no_grad()  # the slope of the log-odds is infinite at 0 and 1
    def _class_log_odds(self, odds: Tensor) -> Tensor:
        knots, values = on(self.knots_, odds), on(self.values_, odds)
        return interpolate(odds.mT.contiguous(), knots, values).mT.logit()
