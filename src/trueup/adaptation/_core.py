"""The Core loss: adapt online to unlabeled batches by making predicted classes less correlated.

Problem: under covariate shift a network spreads its predictions over several classes. Idea: for a batch of
predicted probabilities P `(B, C)`, entry (i, j) of the class correlation P^T P is large if the network takes
the same samples for class i and for class j. Core minimizes the part off the diagonal:

    A = P^T P                                   A_ij = sum_b p_bi p_bj
    row:  mean_i sum_{j != i} A_ij / sum_j A_ij          each class counts the same, however frequent
    sum:  sum_{i != j} A_ij / B                          the mean Gini impurity of the predictions

Since the rows of P sum to 1, sum_j A_ij = sum_b p_bi, and both are means of p (1-p): no matrix is needed.

You, Li, Zhao: Test-time Batch Statistics Calibration for Covariate Shift, 2021, arXiv 2110.04065.
RECONSTRUCTED: there is no official code, and the paper's normalization of A could not be confirmed. `row` is our reading of
"pairwise class correlation"; it is minimum class confusion (Jin et al. 2020) without weights and temperature.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from trueup._numerics.upcasting import upcast

__all__ = ["Normalization", "core_loss"]

Normalization = Literal["row", "sum"]

# A class that no sample has any probability of has no correlation with others.
SMALLEST_ROW_SUM = 1e-12


# ---- the equation ----


def class_correlation(probs: Tensor, normalization: Normalization) -> Tensor:
    """Return A `(C, C)` for probabilities `(B, C)`, with rows divided by their sums if `"row"`."""
    correlation = probs.T @ probs
    if normalization == "sum":
        return correlation
    return correlation / correlation.sum(1, keepdim=True).clamp(min=SMALLEST_ROW_SUM)


def core_equation(probs: Tensor, normalization: Normalization) -> Tensor:
    """Return the off-diagonal sum of A, per class if `"row"`, per sample if `"sum"`."""
    correlation = class_correlation(probs, normalization)
    off_diagonal = correlation.sum() - correlation.trace()
    return off_diagonal / (probs.shape[1] if normalization == "row" else probs.shape[0])


# ---- the fused form ----


def core_loss(
    logits: Float[Tensor, "batch classes *positions"],
    *,
    normalization: Normalization = "row",
    from_probs: bool = False,
) -> Float[Tensor, ""]:
    """Return how much the predicted classes of a batch are correlated, in [0, 1 - 1/C].

    Reconstructed: the paper's own normalization could not be confirmed.

    Args:
        logits: `(N, C)`, or `(N, C, *positions)`, whose positions count as samples.
        normalization: `"row"` divides each class's correlations by their sum, and couples the samples of a
            batch; `"sum"` is the mean of 1 - sum_c p_c^2 over samples.
        from_probs: the logits are probabilities, each row of which sums to 1.

    Returns:
        A scalar in float32 or better; 0 if every sample has one class for certain. NaN in, NaN out.

    Raises:
        TypeError: not floating point.
        ValueError: fewer than two dimensions or classes, no samples, or an unknown normalization.

    Source: You et al. 2021 (arXiv 2110.04065), reconstructed.

    >>> core_loss(torch.tensor([[9.0, 0.0], [0.0, 9.0]])) < 1e-3
    tensor(True)
    >>> core_loss(torch.zeros(2, 4))
    tensor(0.7500)
    """
    if normalization not in get_args(Normalization):
        raise ValueError(f"normalization must be 'row' or 'sum'; got {normalization!r}")
    probs = prediction_rows("core_loss", logits)
    probs = probs if from_probs else probs.softmax(1)
    impurity = probs * (1 - probs)
    if normalization == "sum":
        return impurity.sum(1).mean()
    return (impurity.sum(0) / probs.sum(0).clamp(min=SMALLEST_ROW_SUM)).mean()


def prediction_rows(loss: str, logits: Tensor) -> Float[Tensor, "rows classes"]:
    """Check predictions `(N, C, *positions)` and return them as `(N * positions, C)`, in float32 or better."""
    if not logits.is_floating_point():
        raise TypeError(f"{loss} needs floating point logits; got {logits.dtype}: convert with .float()")
    if logits.dim() < 2 or logits.shape[1] < 2 or logits.numel() == 0:
        raise ValueError(
            f"{loss} needs logits (N, C) or (N, C, *positions) with at least one sample and two classes; got "
            f"shape {tuple(logits.shape)}: for a single logit z per sample pass stack((zeros_like(z), z), 1)"
        )
    return upcast(logits).movedim(1, -1).flatten(0, -2)
