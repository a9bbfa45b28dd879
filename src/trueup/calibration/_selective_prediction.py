"""Ranking by confidence: whether a model is less confident where it is wrong.

A model that may abstain keeps the most confident predictions. Their share is the coverage, their error rate
the risk; AURC is the mean risk over all coverages k/N:

$$\\mathrm{AURC} = \\frac{1}{N} \\sum_k \\frac{1}{k} \\sum_{i \\le k} (1 - a_i),$$

with samples in order of falling confidence. It depends on accuracy too; the excess AURC subtracts the value
of the best possible order. None of these changes under a monotone map of confidence, so temperature scaling
of the binary case leaves them alone: they measure ranking, not calibration. Tied confidences
count with the expectation over their orders.

Y. Geifman, G. Uziel, R. El-Yaniv, Bias-reduced uncertainty estimation for deep neural classifiers (ICLR 2019,
arXiv 1805.08206); its excess AURC approximates the best value by an integral, which here is the exact sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor

from trueup.calibration._binned_measures import scalar
from trueup.calibration._predictions import Predictions
from trueup.calibration._validation import ArrayLike, from_numpy

__all__ = [
    "SelectiveCurve",
    "aurc",
    "correctness_auroc",
    "excess_aurc",
    "ood_auroc",
    "selective_prediction_curve",
]


def correctness_auroc(probs: ArrayLike, target: ArrayLike, *, from_logits: bool = False) -> Float[Tensor, ""]:
    """Return the AUROC of the top class's confidence for being correct; NaN if all or none are correct.

    Shapes and errors as in `calibration_error`.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
        >>> correctness_auroc(probs, torch.tensor([0, 1, 1])).item()
        1.0
    """
    return scalar(Predictions(probs, target, from_logits=from_logits).top.auroc())


def ood_auroc(in_confidence: ArrayLike, out_confidence: ArrayLike) -> Float[Tensor, ""]:
    """Return the AUROC of confidence for telling data of the training distribution from other data.

    Args:
        in_confidence: confidence, or another score, on data of the training distribution; any shape.
        out_confidence: the score on other data; any shape.

    Returns:
        The probability that the former is larger, where ties count half.

    Raises:
        ValueError: no value, NaN or infinity.

    Example:
        >>> ood_auroc(torch.tensor([0.9, 0.8]), torch.tensor([0.5, 0.8])).item()
        0.875
    """
    scores = [from_numpy(s).detach().flatten().double().cpu() for s in (in_confidence, out_confidence)]
    for name, score in zip(("in_confidence", "out_confidence"), scores):
        if len(score) == 0 or not score.isfinite().all():
            fault = "NaN or infinity" if len(score) else "no value"
            raise ValueError(f"{name} must be numbers; it has {fault}: pass the top-class confidences")
    origin = np.repeat([True, False], [len(s) for s in scores])
    return scalar(float(roc_auc_score(origin, torch.cat(scores).numpy())))


def aurc(probs: ArrayLike, target: ArrayLike, *, from_logits: bool = False) -> Float[Tensor, ""]:
    """Return the area under the risk-coverage curve, in [0, 1]: lower is better.

    Tied confidences count with their expectation over random orders. Shapes and errors as in
    `calibration_error`.

    Source: Y. Geifman, G. Uziel, R. El-Yaniv, arXiv 1805.08206, section 3.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
        >>> round(aurc(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.1111
    """
    return scalar(Predictions(probs, target, from_logits=from_logits).top.aurc())


def excess_aurc(probs: ArrayLike, target: ArrayLike, *, from_logits: bool = False) -> Float[Tensor, ""]:
    """Return AURC minus that of the best order, which has all errors last: 0 is best.

    Shapes and errors as in `calibration_error`.

    Source: Y. Geifman, G. Uziel, R. El-Yaniv, arXiv 1805.08206, section 3.

    Example:
        >>> probs = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.3, 0.7]])
        >>> round(excess_aurc(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.5
    """
    return scalar(Predictions(probs, target, from_logits=from_logits).top.excess_aurc())


@dataclass(frozen=True)
class SelectiveCurve:
    """Risk and coverage of keeping predictions of at least a confidence, from the highest down.

    Attributes:
        coverage: share of the samples that is kept, `(thresholds,)`.
        risk: error rate of these.
        threshold: confidence; one entry per distinct value.

    Example:
        >>> curve = selective_prediction_curve(torch.tensor([0.2, 0.9]), torch.tensor([0, 0]))
        >>> curve.risk.tolist()
        [1.0, 0.5]
    """

    coverage: Float[Tensor, " thresholds"]
    risk: Float[Tensor, " thresholds"]
    threshold: Float[Tensor, " thresholds"]


def selective_prediction_curve(
    probs: ArrayLike, target: ArrayLike, *, from_logits: bool = False
) -> SelectiveCurve:
    """Return the risk at every coverage that a threshold on the top class's confidence can give.

    Shapes and errors as in `calibration_error`.

    Example:
        >>> probs = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
        >>> curve = selective_prediction_curve(probs, torch.tensor([0, 1]))
        >>> curve.coverage.tolist(), curve.risk.tolist(), curve.threshold.tolist()
        ([0.5, 1.0], [0.0, 0.5], [0.75, 0.5])
    """
    top = Predictions(probs, target, from_logits=from_logits).top
    covered, errors, threshold = top.risk_coverage()
    columns = (covered / len(top), errors / covered, threshold.astype(np.float64))
    return SelectiveCurve(*map(torch.from_numpy, columns))
