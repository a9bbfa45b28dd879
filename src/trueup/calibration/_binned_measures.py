"""Calibration errors over bins: ECE and its relatives, with one statement of where the edges are.

Each is a norm of the differences between accuracy and confidence over bins of predictions (`_bins` has the
equation and the rules). They differ in the norm (l1: ECE; max: MCE; unweighted mean: ACE; l2: RMSCE), in the
bins (equal width, or equal mass: adaptive), and in what a prediction is (the top class; every class; class
1). Estimates from few samples per bin are too large: the debiased and the sweep estimates correct for that.

L. Tao et al., A Benchmark Study on Calibration (ICLR 2024, arXiv 2308.11838). Its measuring code is not
published; the published classwise and adaptive measures, on which it builds, are `variant="official"`.
Further: M. P. Naeini et al. (2015, ECE and MCE), J. Nixon et al. (arXiv 1904.01685, classwise and
thresholded), A. Kumar et al. (arXiv 1909.10155, debiased), R. Roelofs et al. (arXiv 2012.08668, sweep),
S. Thulasidasan et al. (arXiv 1905.11001, overconfidence).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from trueup.calibration._bins import Binning, Convention, Norm, Variant, check_bins, check_option
from trueup.calibration._predictions import Level, Predictions
from trueup.calibration._top_label import TopLabel
from trueup.calibration._validation import ArrayLike

__all__ = [
    "ReliabilityCurve",
    "adaptive_calibration_error",
    "average_calibration_error",
    "calibration_error",
    "classwise_calibration_error",
    "confidence_gap",
    "debiased_calibration_error",
    "expected_calibration_error",
    "maximum_calibration_error",
    "overconfidence_error",
    "reliability_curve",
    "root_mean_squared_calibration_error",
    "sweep_calibration_error",
    "thresholded_adaptive_calibration_error",
    "underconfidence_error",
]


def calibration_error(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    n_bins: int = 15,
    binning: Binning = "uniform",
    norm: Norm = "l1",
    level: Level = "top",
    debias: bool = False,
    convention: Convention | None = None,
    variant: Variant = "paper",
    from_logits: bool = False,
) -> Float[Tensor, ""]:
    """Return a norm of the differences between accuracy and confidence over bins of predictions.

    Args:
        probs: probabilities `(N, C)` or `(N, C, *positions)`, or `(N,)` for class 1 of a binary problem.
        target: class indices `(N,)` or `(N, *positions)`.
        n_bins: at least 1.
        binning: `"uniform"`: bins (lo, hi] of equal width, where an exact 0 is in the first bin;
            `"quantile"`: as many samples in each, as `numpy.array_split` divides them. Ties keep their order.
        norm: `"l1"` (ECE), `"l2"` (its root mean square), `"max"` (MCE), `"mean"` (over non-empty bins: ACE).
        level: `"top"`: the most probable class, the first of tied ones; `"classwise"`: each class, then the
            mean over all C; `"positive"`: class 1 of a binary problem.
        debias: subtract the variance of the accuracy of each bin from its squared difference (with `"l2"`);
            bins of one sample then contribute 0.
        convention: edges of another library. `"torchmetrics"`: [lo, hi), exact ones in a bin of their own,
            all in float32. `"netcal"`: [lo, hi), the last one closed, values clipped to [eps, 1 - eps]; its
            quantile bins are those of `numpy.quantile`, and ties are an error; it compares in float64, where
            netcal 1.4 counts a float32 value on an edge in one bin and takes its mean in another. Without
            values on an edge, uniform bins agree up to rounding. The level stays: for binary problems both
            libraries mean `"positive"`.
        variant: `"official"`: the published bins, which drop exact zeros or, of quantile bins, the smallest
            probability with its ties, and still divide by N; classwise, over classes up to the largest label.
        from_logits: `probs` are logits.

    Returns:
        A scalar in float64, in [0, 1].

    Raises:
        TypeError: probabilities that are not floating point, or labels that are not integers.
        ValueError: no sample; NaN; probabilities outside [0, 1] or rows that do not sum to 1 within 1e-3;
            labels outside [0, C); an unknown option, or options that exclude each other.

    Source: L. Tao et al., arXiv 2308.11838; for `debias`, A. Kumar et al., arXiv 1909.10155.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> target = torch.tensor([0, 1, 1])
        >>> round(calibration_error(probs, target).item(), 4)
        0.4
        >>> round(calibration_error(probs, target, norm="max").item(), 4)
        0.8
    """
    check_bins(n_bins)
    check_option("binning", binning, Binning)
    check_option("norm", norm, Norm)
    check_option("level", level, Level)
    check_option("variant", variant, Variant)
    if convention is not None:
        check_option("convention", convention, Convention)
        if variant == "official":
            raise ValueError(
                f"convention={convention!r} and variant='official' are two rules for the same edges: pass one"
            )
    if convention == "torchmetrics" and binning == "quantile":
        raise ValueError("torchmetrics has no quantile bins: leave out convention, or use binning='uniform'")
    if debias and norm != "l2":
        raise ValueError(f"debias corrects the squared error; got norm={norm!r}: pass norm='l2'")
    error = Predictions(probs, target, from_logits=from_logits).error(
        n_bins,
        binning=binning,
        norm=norm,
        level=level,
        debias=debias,
        convention=convention,
        variant=variant,
    )
    return scalar(error)


def expected_calibration_error(
    probs: ArrayLike, target: ArrayLike, *, n_bins: int = 15, from_logits: bool = False
) -> Float[Tensor, ""]:
    """Return ECE: the mean absolute difference of accuracy and confidence, weighted by samples per bin.

    Equal-width bins of the top class. Arguments, shapes and errors as in `calibration_error`.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> round(expected_calibration_error(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.4
    """
    return calibration_error(probs, target, n_bins=n_bins, from_logits=from_logits)


def maximum_calibration_error(
    probs: ArrayLike, target: ArrayLike, *, n_bins: int = 15, from_logits: bool = False
) -> Float[Tensor, ""]:
    """Return MCE: the largest absolute difference of accuracy and confidence over the bins.

    One bin with one sample can decide it. Arguments, shapes and errors as in `calibration_error`.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> round(maximum_calibration_error(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.8
    """
    return calibration_error(probs, target, n_bins=n_bins, norm="max", from_logits=from_logits)


def average_calibration_error(
    probs: ArrayLike, target: ArrayLike, *, n_bins: int = 15, from_logits: bool = False
) -> Float[Tensor, ""]:
    """Return ACE as in netcal: the unweighted mean of |accuracy - confidence| over non-empty bins.

    Elsewhere ACE is the adaptive error, `adaptive_calibration_error`. Arguments, shapes and errors as in
    `calibration_error`.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> round(average_calibration_error(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.4
    """
    return calibration_error(probs, target, n_bins=n_bins, norm="mean", from_logits=from_logits)


def root_mean_squared_calibration_error(
    probs: ArrayLike, target: ArrayLike, *, n_bins: int = 15, from_logits: bool = False
) -> Float[Tensor, ""]:
    """Return RMSCE: the root of the mean squared difference of accuracy and confidence over the bins.

    Arguments, shapes and errors as in `calibration_error`.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> round(root_mean_squared_calibration_error(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.4967
    """
    return calibration_error(probs, target, n_bins=n_bins, norm="l2", from_logits=from_logits)


def adaptive_calibration_error(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    n_bins: int = 15,
    variant: Variant = "paper",
    from_logits: bool = False,
) -> Float[Tensor, ""]:
    """Return the equal-mass ECE: as many samples in every bin.

    `variant="official"` drops the smallest confidence, as published. Arguments, shapes and errors as in
    `calibration_error`.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> round(adaptive_calibration_error(probs, torch.tensor([0, 1, 1]), n_bins=2).item(), 4)
        0.2
    """
    return calibration_error(
        probs, target, n_bins=n_bins, binning="quantile", variant=variant, from_logits=from_logits
    )


def classwise_calibration_error(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    n_bins: int = 15,
    binning: Binning = "uniform",
    variant: Variant = "paper",
    from_logits: bool = False,
) -> Float[Tensor, ""]:
    """Return the mean over classes of the ECE of each class's probability.

    Classes without a label count as well. `variant="official"` drops exact zeros (of quantile bins, the
    smallest probability) and has the classes up to the largest label. Arguments, shapes and errors as in
    `calibration_error`.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> round(classwise_calibration_error(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.4
    """
    return calibration_error(
        probs,
        target,
        n_bins=n_bins,
        binning=binning,
        level="classwise",
        variant=variant,
        from_logits=from_logits,
    )


def thresholded_adaptive_calibration_error(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    n_bins: int = 15,
    threshold: float = 0.01,
    from_logits: bool = False,
) -> Float[Tensor, ""]:
    """Return TACE: the classwise equal-mass error of probabilities above a threshold.

    Of each class, probabilities up to `threshold` are left out and the others averaged; a class with none
    left contributes 0. Other arguments, shapes and errors as in `calibration_error`.

    Source: J. Nixon et al., arXiv 1904.01685, section 4.

    Example:
        >>> probs = torch.tensor([[0.995, 0.005], [0.8, 0.2], [0.3, 0.7]])
        >>> target = torch.tensor([0, 1, 1])
        >>> round(thresholded_adaptive_calibration_error(probs, target, n_bins=2).item(), 4)
        0.4592
    """
    check_bins(n_bins)
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1); got {threshold}: 0.01 is usual")
    predictions = Predictions(probs, target, from_logits=from_logits)
    errors = []
    for k in range(predictions.n_classes):
        pairs = predictions.of_class(k)
        first = int(np.searchsorted(pairs.confidence, threshold, side="right"))
        kept = TopLabel(pairs.confidence[first:], pairs.correct[first:])
        errors.append(kept.error(n_bins, binning="quantile") if len(kept) else 0.0)
    return scalar(float(np.mean(errors)))


def debiased_calibration_error(
    probs: ArrayLike, target: ArrayLike, *, n_bins: int = 15, from_logits: bool = False
) -> Float[Tensor, ""]:
    """Return the l2 calibration error without the upward bias of few samples per bin.

    0 where the correction exceeds the error. Arguments, shapes and errors as in `calibration_error`.

    Source: A. Kumar, P. Liang, T. Ma, arXiv 1909.10155, section 5.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
        >>> round(debiased_calibration_error(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.4583
    """
    return calibration_error(probs, target, n_bins=n_bins, norm="l2", debias=True, from_logits=from_logits)


def sweep_calibration_error(
    probs: ArrayLike, target: ArrayLike, *, from_logits: bool = False
) -> Float[Tensor, ""]:
    """Return the equal-mass ECE with as many bins as keep accuracy increasing with confidence.

    The number of bins grows from 1 until the accuracy of some bin is below that of the bin before. If
    already two bins fail, the error is |mean confidence - accuracy|. Arguments, shapes and errors as in
    `calibration_error`.

    Source: R. Roelofs et al., arXiv 2012.08668, algorithm 1.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> round(sweep_calibration_error(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.2
    """
    return scalar(Predictions(probs, target, from_logits=from_logits).top.sweep_error())


def overconfidence_error(
    probs: ArrayLike, target: ArrayLike, *, n_bins: int = 15, from_logits: bool = False
) -> Float[Tensor, ""]:
    """Return OE: the mean of confidence * max(confidence - accuracy, 0) over the bins, by samples.

    Arguments, shapes and errors as in `calibration_error`.

    Source: S. Thulasidasan et al., arXiv 1905.11001, section 3.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> round(overconfidence_error(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.2133
    """
    check_bins(n_bins)
    return scalar(Predictions(probs, target, from_logits=from_logits).top.bins(n_bins).overconfidence())


def underconfidence_error(
    probs: ArrayLike, target: ArrayLike, *, n_bins: int = 15, from_logits: bool = False
) -> Float[Tensor, ""]:
    """Return UE: the mean of max(accuracy - confidence, 0) over the bins, weighted by samples.

    Arguments, shapes and errors as in `calibration_error`.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> round(underconfidence_error(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.1333
    """
    check_bins(n_bins)
    return scalar(Predictions(probs, target, from_logits=from_logits).top.bins(n_bins).underconfidence())


def confidence_gap(probs: ArrayLike, target: ArrayLike, *, from_logits: bool = False) -> Float[Tensor, ""]:
    """Return mean confidence minus accuracy: positive if the model is overconfident, in [-1, 1].

    Shapes and errors as in `calibration_error`.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> round(confidence_gap(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.1333
    """
    return scalar(Predictions(probs, target, from_logits=from_logits).top.confidence_gap())


@dataclass(frozen=True)
class ReliabilityCurve:
    """Confidence and accuracy per bin: `(bins,)`, or `(classes, bins)` at the classwise level.

    Attributes:
        edges: `(bins + 1,)` or `(classes, bins + 1)`; the upper edge of a quantile bin is its largest
            confidence.
        confidence: mean confidence; NaN in empty bins.
        accuracy: share of correct predictions; NaN in empty bins.
        count: samples, int64.

    Example:
        >>> curve = reliability_curve(torch.tensor([0.2, 0.3, 0.9]), torch.tensor([0, 1, 1]), n_bins=2)
        >>> curve.count.tolist()
        [0, 3]
    """

    edges: Float[Tensor, "*classes edges"]
    confidence: Float[Tensor, "*classes bins"]
    accuracy: Float[Tensor, "*classes bins"]
    count: Int[Tensor, "*classes bins"]


def reliability_curve(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    n_bins: int = 15,
    binning: Binning = "uniform",
    level: Level = "top",
    from_logits: bool = False,
) -> ReliabilityCurve:
    """Return the data of a reliability diagram: confidence and accuracy of each bin.

    Arguments, shapes and errors as in `calibration_error`.

    Example:
        >>> probs = torch.tensor([0.2, 0.3, 0.9])
        >>> curve = reliability_curve(probs, torch.tensor([0, 1, 1]), n_bins=2, level="positive")
        >>> curve.accuracy.tolist(), curve.count.tolist()
        ([0.5, 1.0], [2, 1])
    """
    check_bins(n_bins)
    check_option("binning", binning, Binning)
    check_option("level", level, Level)
    predictions = Predictions(probs, target, from_logits=from_logits)
    if level == "classwise":
        pairs = [predictions.of_class(k) for k in range(predictions.n_classes)]
        curves = [pairs_curve(p, n_bins, binning) for p in pairs]
        return ReliabilityCurve(
            *(torch.stack([getattr(c, f.name) for c in curves]) for f in fields(ReliabilityCurve))
        )
    return pairs_curve(predictions.top if level == "top" else predictions.positive, n_bins, binning)


def pairs_curve(pairs: TopLabel, n_bins: int, binning: Binning = "uniform") -> ReliabilityCurve:
    """Return the reliability curve of sorted pairs."""
    bins = pairs.bins(n_bins, binning)
    edges = np.linspace(0, 1, n_bins + 1)
    if binning == "quantile":
        upper = np.cumsum(bins.count).astype(np.int64) - 1
        edges = pairs.confidence[np.append(0, upper)].astype(np.float64)
    columns = map(torch.from_numpy, (edges, bins.confidence, bins.accuracy, bins.count.astype(np.int64)))
    return ReliabilityCurve(*columns)


def scalar(value: float) -> Float[Tensor, ""]:
    """Return a measure as a tensor in float64."""
    return torch.tensor(value, dtype=torch.float64)
