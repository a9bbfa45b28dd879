"""Probabilities and outcomes, sorted once: every measure of one probability per sample follows from them.

With the samples in ascending order of confidence, a bin is a range, and its sums are differences of prefix
sums. All numbers of bins, uniform and quantile, cost one binary search for each edge; the KS error is the
largest prefix sum; MMCE is a sum of products of prefix sums.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from trueup.calibration._bins import Binning, Bins, Convention, Norm, Variant, bin_bounds
from trueup.calibration._kernel_sums import density_error, laplacian_sum

__all__ = ["TopLabel"]

Values = Float[NDArray[np.floating], " samples"]
Flags = Bool[NDArray[np.bool_], " samples"]


class TopLabel:
    """Confidences in ascending order, and whether each prediction is correct.

    Also serves one class or the positive class: its probability, and whether it is the true one.

    Args:
        confidence: in [0, 1], ascending, float32 or float64; `TopLabel.of` sorts.
        correct: one flag per confidence.
    """

    def __init__(self, confidence: Values, correct: Flags) -> None:
        self.confidence = confidence
        self.correct = correct
        self.residual = np.subtract(confidence, correct, dtype=np.float64)
        self._gap = _prefix_sums(self.residual)

    @classmethod
    def of(cls, confidence: Values, correct: Flags) -> TopLabel:
        """Sort by confidence; ties keep their order."""
        return cls(*sort_pairs(confidence, correct))

    def __len__(self) -> int:
        return len(self.confidence)

    @cached_property
    def _hits(self) -> NDArray[np.float64]:
        return _prefix_sums(self.correct)

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def mean_confidence(self) -> float:
        return self.accuracy + self.confidence_gap()

    def bins(
        self,
        n_bins: int,
        binning: Binning = "uniform",
        convention: Convention | None = None,
        variant: Variant = "paper",
    ) -> Bins:
        """Return the sums of each bin."""
        if convention == "torchmetrics" and self.confidence.dtype != np.float32:
            return TopLabel(self.confidence.astype(np.float32), self.correct).bins(
                n_bins, binning, convention
            )
        if convention == "netcal":
            eps = np.finfo(self.confidence.dtype).eps
            clipped = TopLabel(self.confidence.clip(eps, 1 - eps), self.correct)
            return clipped._bins(bin_bounds(clipped.confidence, n_bins, binning, convention))
        return self._bins(bin_bounds(self.confidence, n_bins, binning, convention, variant))

    def _bins(self, bounds: NDArray[np.integer]) -> Bins:
        count = np.diff(bounds).astype(np.float64)
        return Bins(count, np.diff(self._gap[bounds]), np.diff(self._hits[bounds]), len(self))

    def error(
        self,
        n_bins: int = 15,
        *,
        binning: Binning = "uniform",
        norm: Norm = "l1",
        debias: bool = False,
        convention: Convention | None = None,
        variant: Variant = "paper",
    ) -> float:
        """Return a binned calibration error."""
        return self.bins(n_bins, binning, convention, variant).error(norm, debias)

    def confidence_gap(self) -> float:
        """Return mean confidence minus accuracy."""
        return float(self._gap[-1] / len(self))

    def ks_error(self) -> float:
        """Return the largest absolute prefix sum of confidence minus correctness, per sample."""
        return float(max(self._gap.max(), -self._gap.min()) / len(self))

    def mmce(self, width: float = 0.4) -> float:
        """Return the maximum mean calibration error."""
        return float(np.sqrt(max(laplacian_sum(self.confidence, self.residual, width), 0)) / len(self))

    def kde_error(self, variant: Variant = "paper") -> float:
        """Return the calibration error of kernel density estimates; NaN without two correct confidences."""
        return density_error(self.confidence, self.correct, variant)

    def sweep_n_bins(self) -> int:
        """Return the largest number of quantile bins up to which accuracies never decrease."""
        if (self.correct[1:] >= self.correct[:-1]).all():
            return len(self)
        n_bins = 1
        # Some accuracy decreases in bins of one sample, so this ends.
        while True:
            bins = self.bins(n_bins + 1, "quantile")
            if (np.diff(bins.accuracy) < 0).any():
                return n_bins
            n_bins += 1

    def sweep_error(self) -> float:
        """Return the l1 error at `sweep_n_bins`."""
        return self.error(self.sweep_n_bins(), binning="quantile")

    def brier_score(self) -> float:
        """Return the mean squared difference of confidence and correctness."""
        return float(self.residual @ self.residual / len(self))

    def auroc(self) -> float:
        """Return the AUROC of confidence for correctness; NaN if all or none are correct."""
        if self.correct.all() or not self.correct.any():
            return float("nan")
        return float(roc_auc_score(self.correct, self.confidence))

    def risk_coverage(self) -> tuple[NDArray[np.int64], NDArray[np.float64], Values]:
        """Return, per distinct confidence from the highest: samples at or above, their errors, and it."""
        falling = self.confidence[::-1]
        last = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(self) - 1)
        errors = np.cumsum(~self.correct[::-1])[last].astype(np.float64)
        return last + 1, errors, falling[last]

    def aurc(self) -> float:
        """Return the mean risk over all coverages 1/N ... 1, expected over random orders of ties."""
        covered, errors, _ = self.risk_coverage()
        ranks = np.arange(1, len(self) + 1)
        expected = np.interp(ranks, np.append(0, covered), np.append(0, errors))
        return float((expected / ranks).mean())

    def excess_aurc(self) -> float:
        """Return `aurc` minus that of a ranking with all errors last."""
        ranks = np.arange(1, len(self) + 1)
        best = np.maximum(ranks - self.correct.sum(), 0) / ranks
        return self.aurc() - float(best.mean())


def sort_pairs(confidence: Values, correct: Flags) -> tuple[Values, Flags]:
    """Sort pairs by confidence; ties keep their order."""
    if confidence.dtype != np.float32 or len(confidence) >= 2**32:
        order = np.argsort(confidence, kind="stable")
        return confidence[order], correct[order]
    # Bits of float32 in [0, 1] ascend with the value: one integer sort orders by (confidence, position).
    packed = np.ascontiguousarray(confidence).view(np.int32).astype(np.int64)
    packed <<= 33  # drops the sign, so that -0.0 is 0
    packed += np.arange(0, 2 * len(packed), 2)
    packed += correct
    packed.sort()
    return (packed >> 33).astype(np.int32).view(np.float32), (packed & 1).astype(np.bool_)


def _prefix_sums(values: NDArray[np.generic]) -> NDArray[np.float64]:
    sums = torch.zeros(len(values) + 1, dtype=torch.float64)
    torch.cumsum(torch.from_numpy(values), 0, dtype=torch.float64, out=sums[1:])  # faster than numpy's
    return np.asarray(sums)
