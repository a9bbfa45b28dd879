"""Sums over bins of predictions, and the calibration errors that follow from them.

A prediction that states the probability $c$ comes true in a share $c$ of the cases, if it is calibrated.
To measure how far a model is from that, collect predictions of similar probability in a bin $b$ and compare
their mean probability with the share $a$ that came true:

$$\\mathrm{ECE} = \\sum_b \\frac{n_b}{N} |\\bar a_b - \\bar c_b|$$

Libraries differ at the edges. Here `uniform` bins are (lo, hi] with edges `linspace(0, 1, bins + 1)` in
float64, and an exact 0 is in the first bin; `quantile` bins are the parts of the sorted predictions that
`numpy.array_split` makes, where ties keep their order. Every prediction is in one bin.

M. P. Naeini, G. F. Cooper, M. Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning
(2015); L. Tao et al., A Benchmark Study on Calibration (ICLR 2024, arXiv 2308.11838). The published
quantile bins drop the smallest confidence, and the published uniform bins drop exact zeros
(`variant="official"`): both still divide by all samples, so these samples count as calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

__all__ = [
    "DEFAULT_BINS",
    "Binning",
    "Bins",
    "Convention",
    "Norm",
    "Variant",
    "bin_bounds",
    "binned_error",
    "check_bins",
    "check_option",
]

# The numbers of bins that the benchmark study compares.
DEFAULT_BINS = (5, 10, 15, 20, 25, 50, 100, 200, 500)

Binning = Literal["uniform", "quantile"]
Norm = Literal["l1", "l2", "max", "mean"]
Convention = Literal["torchmetrics", "netcal"]
Variant = Literal["paper", "official"]

Sums = Float[NDArray[np.float64], "*classes bins"]


# ---- the equation ----
def binned_error(
    count: Sums, gap: Sums, hits: Sums, total: int, norm: Norm, debias: bool = False
) -> Float[NDArray[np.float64], "*classes"]:
    """Return the norm of (accuracy - confidence) over the bins, from sums over the samples of each bin.

    `gap` is the sum of confidence minus correctness, `hits` the sum of correctness.
    """
    samples = np.maximum(count, 1)  # empty bins contribute 0
    difference, weight = np.abs(gap) / samples, count / total
    if norm == "l1":
        return np.asarray(np.sum(weight * difference, -1))
    if norm == "max":
        return np.asarray(np.max(difference, -1))
    if norm == "mean":
        return np.asarray(np.sum(difference, -1) / np.maximum(np.sum(count > 0, -1), 1))
    square = difference**2
    if debias:  # by the variance of the accuracy of a bin, which one sample does not show
        accuracy = hits / samples
        square = np.where(count < 2, 0, square - accuracy * (1 - accuracy) / np.maximum(count - 1, 1))
    return np.asarray(np.sqrt(np.maximum(np.sum(weight * square, -1), 0)))


@dataclass(frozen=True)
class Bins:
    """Sums over the samples of each bin, `(bins,)` or `(classes, bins)`.

    Attributes:
        count: samples.
        gap: sum of confidence minus correctness.
        hits: sum of correctness.
        total: the number of samples to divide by.
    """

    count: Sums
    gap: Sums
    hits: Sums
    total: int

    @property
    def confidence(self) -> Sums:
        """Mean confidence; NaN in empty bins."""
        return (self.gap + self.hits) / np.where(self.count > 0, self.count, np.nan)

    @property
    def accuracy(self) -> Sums:
        """Share of correct predictions; NaN in empty bins."""
        return self.hits / np.where(self.count > 0, self.count, np.nan)

    def error(self, norm: Norm = "l1", debias: bool = False) -> float:
        """Calibration error; the mean over classes, if there are any."""
        return float(np.mean(binned_error(self.count, self.gap, self.hits, self.total, norm, debias)))

    def overconfidence(self) -> float:
        """Sum of n_b / N * confidence * max(confidence - accuracy, 0)."""
        return float((np.nan_to_num(self.confidence) * np.maximum(self.gap, 0)).sum(-1).mean() / self.total)

    def underconfidence(self) -> float:
        """Sum of n_b / N * max(accuracy - confidence, 0)."""
        return float(np.maximum(-self.gap, 0).sum(-1).mean() / self.total)


def bin_bounds(
    confidence: Float[NDArray[np.floating], " samples"],
    n_bins: int,
    binning: Binning = "uniform",
    convention: Convention | None = None,
    variant: Variant = "paper",
) -> Int[NDArray[np.integer], " bounds"]:
    """Return where bins begin and end in confidences in ascending order: bin b is `bounds[b]:bounds[b + 1]`.

    For netcal's convention, confidences must be clipped as it does; for that of torchmetrics, float32.
    """
    n = len(confidence)
    if convention == "torchmetrics":  # [lo, hi), and one more bin for exact ones
        edges = torch.linspace(0, 1, n_bins + 1).numpy()
        return np.append(np.searchsorted(confidence, edges, side="left"), n)
    if convention == "netcal":  # [lo, hi), the last one closed
        edges = np.linspace(0, 1, n_bins + 1)
        if binning == "quantile":
            edges = np.quantile(confidence, edges)
            edges[0], edges[-1] = 0, 1
            if (np.diff(edges) <= 0).any():
                raise ValueError(
                    "netcal refuses quantile bins of tied confidences, and these are tied: leave out "
                    "convention, or use fewer bins"
                )
        bounds = np.searchsorted(confidence, edges, side="left")
        bounds[-1] = n
        return bounds
    if binning == "uniform":
        bounds = np.searchsorted(
            confidence, floor_to(confidence.dtype, np.linspace(0, 1, n_bins + 1)), "right"
        )
    elif variant == "official":
        edges = np.interp(np.linspace(0, n, n_bins + 1), np.arange(n), confidence)
        bounds = np.searchsorted(confidence, floor_to(confidence.dtype, edges), "right")
    else:
        part = np.arange(n_bins + 1)
        return part * (n // n_bins) + np.minimum(part, n % n_bins)
    if variant == "paper":
        bounds[0] = 0
    return bounds


def floor_to(
    dtype: np.dtype[np.floating], edges: Float[NDArray[np.float64], " edges"]
) -> NDArray[np.floating]:
    """Round edges down to a dtype, so that values of that dtype compare with them as in float64."""
    rounded = edges.astype(dtype)
    return np.where(rounded > edges, np.nextafter(rounded, dtype.type(-1)), rounded)


def check_bins(n_bins: int | np.integer) -> None:
    """Raise ValueError unless `n_bins` is a positive integer."""
    if isinstance(n_bins, bool) or not isinstance(n_bins, int | np.integer) or n_bins < 1:
        raise ValueError(f"n_bins must be an integer of at least 1; got {n_bins!r}: 15 is usual")


def check_option(name: str, value: object, choices: object) -> None:
    """Raise ValueError unless `value` is one of a Literal's choices."""
    if value not in get_args(choices):
        allowed = ", ".join(map(repr, get_args(choices)))
        raise ValueError(f"{name} must be one of {allowed}; got {value!r}: choose one of them")
