"""One-vs-rest: calibrate the probability of each class by itself, then divide by their sum."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trueup.calibration._calibrator import Calibrator

__all__ = ["OneVsRestCalibrator"]

LARGEST = 700.0  # exp(-700) is about the smallest float64


class OneVsRestCalibrator(Calibrator):
    """A calibrator of binary problems, used for each class against all others.

    A subclass fits the column of one class in `_fit_class` and stores what it returns for all columns in
    `_store`; `_class_log_odds` maps all columns at once. Two classes are one problem, that of class 1. If all
    classes of a row get a probability of zero, the row becomes uniform, as in scikit-learn.
    """

    def _fit(self, rows: Tensor, labels: Tensor, weight: Tensor | None) -> None:
        self._check_parameters()
        odds = log_odds(rows).cpu().numpy()
        weights = np.ones(len(odds)) if weight is None else weight.cpu().numpy()
        classes = range(1, 2) if rows.shape[1] == 2 else range(rows.shape[1])
        target = labels.cpu().numpy()
        self._store([self._fit_class(odds[:, i], target == c, weights) for i, c in enumerate(classes)])

    def _map(self, rows: Tensor) -> Tensor:
        calibrated = self._class_log_odds(log_odds(rows))
        log_probs = F.logsigmoid(calibrated)
        if rows.shape[1] == 2:
            return torch.cat([F.logsigmoid(-calibrated), log_probs], 1)
        empty = (log_probs == -torch.inf).all(1, keepdim=True)
        return log_probs.masked_fill(empty, 0.0).log_softmax(1)

    def _check_parameters(self) -> None:
        pass

    def _fit_class(
        self,
        odds: Float[NDArray[np.float64], " rows"],
        positive: Bool[NDArray[np.bool_], " rows"],
        weight: Float[NDArray[np.float64], " rows"],
    ) -> NDArray[np.float64]:
        raise NotImplementedError

    def _store(self, fitted: list[NDArray[np.float64]]) -> None:
        raise NotImplementedError

    def _class_log_odds(self, odds: Float[Tensor, "rows problems"]) -> Float[Tensor, "rows problems"]:
        raise NotImplementedError


def log_odds(rows: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows problems"]:
    """Return log p - log(1 - p) of each class (of class 1 if there are two), in float64 within +-700.

    Unlike the logit, it does not change if all logits of a row are shifted.
    """
    rows = rows.double()
    if rows.shape[1] == 2:
        return (rows[:, 1:] - rows[:, :1]).clamp(-LARGEST, LARGEST)
    log_probs = rows.log_softmax(1)
    odds = log_probs - (-log_probs.exp()).log1p()
    # 1 - p cancels for p near 1, which only the largest logit can have: add up the other classes instead.
    top = rows.argmax(1, keepdim=True)
    others = rows.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    return odds.scatter(1, top, rows.gather(1, top) - others).clamp(-LARGEST, LARGEST)


def on(values: NDArray[np.float64], like: Tensor) -> Tensor:
    """Return fitted values as a tensor of the dtype and on the device of `like`."""
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)
