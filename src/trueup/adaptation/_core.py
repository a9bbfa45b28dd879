"""The Core loss: adapt online to unlabeled batches by making predicted classes less correlated.

Problem: under covariate shift a network spreads its predictions over several classes. Idea: for a batch of
predicted probabilities P `(B, C)`, entry (i, j) of the class correlation P^T P is large if the network takes
the same samples for class i and for class j. Core minimizes the part off the diagonal:

    A = P^T P                                   A_ij = sum_b p_bi p_bj
    row:  mean_i sum_{j != i} A_ij / sum_j A_ij          each class counts the same, however frequent
    sum:  sum_{i != j} A_ij / B                          the mean Gini impurity of the predictions

Since the rows of P sum to 1, sum_j A_ij = sum_b p_bi, and both are means of p (1-p): no matrix is needed.

You, Li, Zhao: Test-time Batch Statistics Calibration for Covariate Shift, 2021, arXiv 2110.04065.
RECONSTRUCTED: there is no official code, and the paper's normalization of A could not be confirmed. `row` is
our reading of "pairwise class correlation": minimum class confusion (Jin et al. 2020) without its weights and
temperature. Training and layers are those of TENT and of `convert_alpha_bn`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trueup.adaptation._online_adapter import OnlineAdapter, has_batch_norm
from trueup.adaptation._prediction_rows import prediction_rows
from trueup.adaptation._restore import convert_alpha_bn

__all__ = ["Normalization", "core", "core_loss"]

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


def core(
    model: nn.Module,
    source_weight: float = 0.5,
    *,
    normalization: Normalization = "row",
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = partial(torch.optim.Adam, lr=1e-3),
    steps: int = 1,
    episodic: bool = False,
) -> OnlineAdapter:
    """Return an adapter of a copy of the model: mixed statistics, and steps on the Core loss.

    Args:
        model: a trained classifier with batch norms.
        source_weight: in [0, 1], of the running statistics; see `convert_alpha_bn`.
        normalization: see `core_loss`.
        optimizer: takes a list of parameters and returns an optimizer. In a long stream of correlated labels
            the loss drives predictions to one class: use a small learning rate, or `reset()`.
        steps, episodic: see `OnlineAdapter`.

    Returns:
        `OnlineAdapter(convert_alpha_bn(model, source_weight), core_loss, optimizer)`, whose scales and shifts
        are trained. `restore(adapter)` is the source model.

    Raises:
        ValueError: the model has no batch norm, or none with affine parameters; an option out of range.

    Source: You et al. 2021 (arXiv 2110.04065), reconstructed.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    >>> adapter = core(model, 0.7)
    >>> adapter(torch.randn(16, 4)).shape
    torch.Size([16, 3])
    """
    if not has_batch_norm(model):
        raise ValueError(
            "core mixes the statistics of batch norms, but the model has none: to train the affine "
            "parameters of other norms by this loss use OnlineAdapter(model, core_loss, optimizer)"
        )
    loss = partial(core_loss, normalization=normalization)
    converted = convert_alpha_bn(model, source_weight)
    return OnlineAdapter(converted, loss, optimizer, steps=steps, episodic=episodic)
