"""The measures of calibration as torchmetrics metrics: they stream over batches and reduce over processes.

Every metric takes `metric.update(preds, target)` with the shapes of the functions, `(N,)`, `(N, C)` or
`(N, C, *positions)`, and gives the value that the function gives for all batches together, up to rounding.
Measures with fixed bins keep sums per bin (at most a few kilobytes, and one all-reduce under DDP). Those that
need an order of the samples (quantile bins, KS, KDE, MMCE, rankings) keep a confidence and a hit per sample
and are as exact; memory then grows with the data, and DDP gathers it.

Sums are float64, so that a million small terms lose nothing. This module needs torchmetrics, which
`trueup.calibration` imports only when a metric is asked for.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

Level = Literal["top", "positive"]


class _BinSums(Metric):
    """Keep, per bin of equal width, the number of samples and the sums of their confidences and hits."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    count: Tensor
    confidence: Tensor
    correct: Tensor

    def __init__(
        self, n_bins: int = 15, *, level: Level = "top", from_logits: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.n_bins = check_n_bins(n_bins)
        self.level = level
        self.from_logits = from_logits
        for state in ("count", "confidence", "correct"):
            self.add_state(state, torch.zeros(n_bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch of predictions and labels."""
        curve = reliability_curve(
            preds, target, n_bins=self.n_bins, level=self.level, from_logits=self.from_logits
        )
        filled = curve.count > 0  # the means of an empty bin are NaN
        self.count += curve.count
        self.confidence += torch.where(filled, curve.confidence * curve.count, 0)
        self.correct += torch.where(filled, curve.accuracy * curve.count, 0)


class ExpectedCalibrationError(_BinSums):
    """Stream `expected_calibration_error`: the mean distance of confidence and accuracy over equal-width bins.

    Args:
        n_bins: number of bins of equal width on [0, 1].
        level: `"top"` for the predicted class, `"positive"` for the probability of class 1 in binary problems.
        from_logits: `preds` are logits.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> metric = ExpectedCalibrationError(n_bins=10)
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 0]))
        >>> metric.compute()
        tensor(0.4000, dtype=torch.float64)
    """
