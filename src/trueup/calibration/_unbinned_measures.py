"""Measures of calibration without bins: KS, kernel density, MMCE, and the proper scores NLL and Brier.

Bins cost a choice, and small changes of a confidence move samples across their edges. The KS error is the
largest difference of the cumulative sums of confidence and correctness over samples in order of confidence:

$$\\mathrm{KS} = \\max_i \\frac{1}{N} |\\sum_{j \\le i} (c_j - a_j)|$$

`_kernel_sums` has the equations of MMCE and of the kernel density error. NLL and Brier score measure
calibration and accuracy together; they are minimal for the true probabilities only.

K. Gupta et al., Calibration of neural networks using splines (arXiv 2006.12800, KS); L. Tao et al., A
Benchmark Study on Calibration (ICLR 2024, arXiv 2308.11838), which compares these with the binned errors.
Some published KS code sorts by correctness, not by confidence: its values are no KS errors.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from trueup.calibration._binned_measures import scalar
from trueup.calibration._bins import Variant, check_option
from trueup.calibration._predictions import Predictions, Reduction
from trueup.calibration._validation import ArrayLike

__all__ = ["brier_score", "kde_calibration_error", "ks_error", "mmce", "negative_log_likelihood"]


def ks_error(probs: ArrayLike, target: ArrayLike, *, from_logits: bool = False) -> Float[Tensor, ""]:
    """Return the Kolmogorov-Smirnov calibration error of the top class, in [0, 1].

    The largest difference of the cumulative sums of confidence and correctness, per sample. Ties keep their
    order. Shapes and errors as in `calibration_error`.

    Source: K. Gupta et al., arXiv 2006.12800, equation 6.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> round(ks_error(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.1667
    """
    return scalar(Predictions(probs, target, from_logits=from_logits).top.ks_error())


def kde_calibration_error(
    probs: ArrayLike, target: ArrayLike, *, variant: Variant = "paper", from_logits: bool = False
) -> Float[Tensor, ""]:
    """Return the calibration error of the top class from kernel density estimates.

    `variant="official"` is the published code, whose values are far too large for models that are sure of
    nearly all samples.

    NaN if correct predictions have fewer than two different confidences, since the bandwidth is then 0. This
    is the estimate with triweight kernels of the top confidence, not the one with Dirichlet kernels of all
    probabilities. Shapes and errors as in `calibration_error`.

    Source: J. Zhang, B. Kailkhura, T. Han, arXiv 2003.07329, section 4.

    Example:
        >>> import torch
        >>> probs = torch.tensor([0.6, 0.7, 0.8, 0.9])
        >>> round(kde_calibration_error(probs, torch.tensor([0, 1, 1, 1])).item(), 2)
        0.21
    """
    check_option("variant", variant, Variant)
    return scalar(Predictions(probs, target, from_logits=from_logits).top.kde_error(variant))


def mmce(
    probs: ArrayLike, target: ArrayLike, *, width: float = 0.4, from_logits: bool = False
) -> Float[Tensor, ""]:
    """Return the maximum mean calibration error of the top class with a Laplacian kernel.

    All pairs count, in O(N log N) time. `width` is that of the kernel exp(-|c - c'| / width). Other
    arguments, shapes and errors as in `calibration_error`.

    Source: A. Kumar, S. Sarawagi, U. Jain, ICML 2018, equation 3.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> round(mmce(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.1757
    """
    if not width > 0:
        raise ValueError(f"width must be positive; got {width}: 0.4 is usual")
    return scalar(Predictions(probs, target, from_logits=from_logits).top.mmce(width))


def negative_log_likelihood(
    probs: ArrayLike, target: ArrayLike, *, from_logits: bool = False
) -> Float[Tensor, ""]:
    """Return the mean of -log(probability of the label), in nats.

    A probability of 0 counts as 2.2e-308; from logits nothing is clipped. Shapes and errors as in
    `calibration_error`.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> round(negative_log_likelihood(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.6905
    """
    return scalar(Predictions(probs, target, from_logits=from_logits).negative_log_likelihood())


def brier_score(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Reduction = "sum",
    from_logits: bool = False,
) -> Float[Tensor, ""]:
    """Return the mean squared difference of probabilities and outcomes.

    Args:
        probs: see `calibration_error`, also for shapes and errors.
        target: class indices.
        reduction: `"sum"` over classes, in [0, 2]; `"mean"` over classes, which for a binary problem is
            scikit-learn's `brier_score_loss`; `"top"`: of the top class only, (confidence - correctness)^2.
        from_logits: `probs` are logits.

    Source: G. W. Brier, 1950 (`"sum"`).

    Example:
        >>> import torch
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> round(brier_score(probs, torch.tensor([0, 1, 1])).item(), 4)
        0.4933
    """
    check_option("reduction", reduction, Reduction)
    return scalar(Predictions(probs, target, from_logits=from_logits).brier_score(reduction))
