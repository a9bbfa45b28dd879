"""Histogram calibration: replace a probability by the frequency of the class among similar probabilities.

The held-out probabilities of a class are sorted into bins. The calibrated probability of a bin is the share
of its samples that are of the class:

    q_b = sum_{i in b} w_i [y_i = c] / sum_{i in b} w_i

Bianca Zadrozny, Charles Elkan, Obtaining calibrated probability estimates from decision trees and naive
Bayesian classifiers, ICML 2001; for several classes, one problem per class and division by the sum,
Transforming classifier scores into accurate multiclass probability estimates, KDD 2002. A bin without samples
gives its midpoint. Bins are `(low, high]`.
"""

from __future__ import annotations

import numbers
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from trueup.calibration._one_vs_rest import OneVsRestCalibrator, on

__all__ = ["HistogramCalibrator"]

Binning = Literal["uniform", "quantile"]


# ---- the equation ----


def bin_frequencies(
    bins: Int[NDArray[np.integer], " rows"],
    positive: Bool[NDArray[np.bool_], " rows"],
    weight: Float[NDArray[np.float64], " rows"],
    edges: Float[NDArray[np.float64], " edges"],
) -> Float[NDArray[np.float64], " bins"]:
    """Return the weighted share of positives in each bin, and the midpoint of a bin without samples."""
    n_bins = len(edges) - 1
    total = np.bincount(bins, weight, n_bins)
    positives = np.bincount(bins, weight * positive, n_bins)
    midpoints = (edges[1:] + edges[:-1]) / 2
    return np.divide(positives, total, out=midpoints, where=total > 0)


class HistogramCalibrator(OneVsRestCalibrator):
    """Replace the probability of each class by the frequency of the class in its bin.

    `transform` returns log-probabilities, which are -inf where no sample of the class was in the bin, and
    log-odds for binary logits `(N,)`, which are infinite where the frequency is 0 or 1. It has no gradient.

    Args:
        n_bins: number of bins, 1 or more.
        binning: `"uniform"`, bins of equal width; `"quantile"`, bins of equal numbers of held-out samples.

    Attributes:
        edges_: of shape `(C, n_bins + 1)`, from 0 to 1; one row, for class 1, if there are two classes.
        frequencies_: of shape `(C, n_bins)`, or one row.
        n_features_in_: number of classes; 1 for binary logits `(N,)`.

    Raises: see `fit`, which also raises ValueError for parameters out of range.

    Source: Zadrozny and Elkan (2001), section 4.

    Example:
        >>> import torch
        >>> logits = torch.tensor([2.0, 2.0, 2.0, 2.0, -2.0])  # of class 1
        >>> calibrator = HistogramCalibrator(n_bins=10).fit(logits, torch.tensor([1, 1, 1, 0, 0]))
        >>> calibrator.predict_proba(logits)
        tensor([0.7500, 0.7500, 0.7500, 0.7500, 0.0000])
    """

    def __init__(self, *, n_bins: int = 15, binning: Binning = "uniform") -> None:
        self.n_bins = n_bins
        self.binning = binning

    def _check_parameters(self) -> None:
        if not isinstance(self.n_bins, numbers.Integral) or self.n_bins < 1:
            raise ValueError(f"n_bins must be an integer, 1 or more; got {self.n_bins!r}")
        if self.binning not in get_args(Binning):
            raise ValueError(f"binning must be one of {get_args(Binning)}; got {self.binning!r}")

    def _fit_class(
        self, odds: NDArray[np.float64], positive: NDArray[np.bool_], weight: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        probs = special.expit(odds)
        edges = np.linspace(0, 1, self.n_bins + 1)
        if self.binning == "quantile":
            edges[1:-1] = np.quantile(probs, edges[1:-1], weights=weight, method="inverted_cdf")
        bins = np.searchsorted(edges[1:-1], probs)
        return np.concatenate([edges, bin_frequencies(bins, positive, weight, edges)])

    def _store(self, fitted: list[NDArray[np.float64]]) -> None:
        self.edges_, self.frequencies_ = np.split(np.stack(fitted), [self.n_bins + 1], axis=1)

    def _class_log_odds(self, odds: Tensor) -> Tensor:
        edges, frequencies = on(self.edges_, odds), on(self.frequencies_, odds)
        # The function of `fit`: another's last bit could move a sample on an edge into the next bin.
        probs = on(special.expit(odds.detach().cpu().numpy()), odds)
        bins = torch.searchsorted(edges[:, 1:-1].contiguous(), probs.mT.contiguous())
        return frequencies.gather(1, bins).logit().mT
