"""Log-ratio statistics of compositions: data known only up to a positive factor per sample.

Proportions, counts at unknown depth and oxide percentages carry information only in the ratios of their
parts. Every statistic here is unchanged when a sample is multiplied by a positive number. With Gamma the
covariance of the centred log-ratios of D parts (rank D - 1: its null vector is the vector of ones), partial
correlations come from its pseudo-inverse

    P = inv(Gamma + c 11'/D) - 11'/(c D)    for any c > 0,    r_ij = -P_ij / sqrt(P_ii P_jj),

and do not depend on a reference part, as correlations of log-ratios do.

Ionas Erb, Partial correlations in compositional data analysis, Applied Computing and Geosciences 6 (2020),
arXiv 1904.09480. The structural zero of Gamma is removed in closed form, by one Cholesky factorisation, which
also has a gradient. A pseudo-inverse with a cut-off may keep the zero by mistake, and its values explode.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.linalg import blas, lapack
from torch import Tensor

Shrinkage: TypeAlias = Literal["clr", "basis"] | float | None

_CHUNK_SIZE = 128  # samples whose log-ratios are in memory at a time
_CHUNK_EDGE = 64  # edge of the square chunks in which a matrix is scaled or mirrored, to stay in cache

_RANK_LOST = (
    "the log-ratios are linearly dependent, so partial correlations do not exist: leave one of the dependent "
    "parts out (two parts in a constant ratio are one part), or pass shrinkage='basis'"
)


class RankLossError(ValueError):
    """The log-ratios are linearly dependent, so their covariance has no inverse."""


# ---- the equation ----


def log_ratio_precision(
    covariance: Float[Tensor, "*batch parts parts"], *, shrinkage: Shrinkage = None
) -> tuple[Float[Tensor, "*batch parts parts"], Float[Tensor, "*batch"]]:
    """Return the pseudo-inverse of the covariance and its condition number in the 1-norm.

    Both leave out the structural zero. Shrinkage in clr space fills the null direction, so that there the
    result is an ordinary inverse.

    Raises:
        RankLossError: if more than the one structural eigenvalue vanishes.
    """
    parts = covariance.shape[-1]
    if shrinkage == "clr":
        inverse = _inverse(covariance.clone())
    else:
        # c = the mean of the other eigenvalues, so that the shift does not spoil the conditioning.
        c = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] / (parts - 1)
        inverse = _inverse(covariance + c / parts)
        offset = 1 / (c * parts)
        inverse = inverse - offset if inverse.requires_grad else inverse.sub_(offset)
    condition = _one_norm(covariance) * _one_norm(inverse)
    # Written so that NaN fails too. The rounding of the covariance alone leaves eigenvalues of this size.
    if not bool((condition * max(10, parts) * torch.finfo(covariance.dtype).eps < 1).all()):
        raise RankLossError(_RANK_LOST)
    return inverse, condition


def precision_to_correlation(
    precision: Float[Tensor, "*batch parts parts"],
) -> Float[Tensor, "*batch parts parts"]:
    """Compute r_ij = -P_ij / sqrt(P_ii P_jj), with unit diagonal; overwrite P if it needs no gradient."""
    scale = precision.diagonal(dim1=-2, dim2=-1).rsqrt()
    if precision.requires_grad:
        correlation = precision * (-scale[..., :, None] * scale[..., None, :])
    else:
        correlation = precision
        for rows, of_rows in zip(precision.split(_CHUNK_EDGE, -2), scale.split(_CHUNK_EDGE, -1), strict=True):
            rows.mul_(-of_rows[..., :, None] * scale[..., None, :])
    correlation.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return correlation


def clr(X: Float[Tensor, "*batch samples parts"]) -> Float[Tensor, "*batch samples parts"]:
    """Compute centred log-ratios: the log of each part over its sample's geometric mean.

    Args:
        X: positive parts, in any unit and with any row sums; computed in float64.

    Returns:
        float64; every row sums to zero.

    Raises:
        TypeError: if `X` is not a floating-point tensor.
        ValueError: for fewer than two parts, and for zeros, negative numbers, NaN or infinity.

    Example:
        >>> (clr(torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])) / math.log(10)).round(decimals=6)
        tensor([[-1.,  0.,  1.],
                [-1.,  0.,  1.]], dtype=torch.float64)
    """
    return _clr(_parts("clr", X))


def alr(
    X: Float[Tensor, "*batch samples parts"], *, reference: int = -1
) -> Float[Tensor, "*batch samples rest"]:
    """Compute additive log-ratios: the log of each part over the reference part, which is left out.

    Args:
        X: as in `clr`.
        reference: index of the reference part; the last by default.

    Returns:
        float64, one column fewer than `X`.

    Raises:
        TypeError, ValueError: as `clr`.
        IndexError: if there is no part of that index.

    Example:
        >>> alr(torch.tensor([[1.0, 10.0, 100.0]])) / math.log(10)
        tensor([[-2., -1.]], dtype=torch.float64)
    """
    logs = _parts("alr", X).log()
    parts = logs.shape[-1]
    if not -parts <= reference < parts:
        raise IndexError(f"alr needs a reference from {-parts} to {parts - 1}; got {reference}")
    reference %= parts
    rest = torch.cat([logs[..., :reference], logs[..., reference + 1 :]], dim=-1)
    return rest - logs[..., reference, None]


def ilr(X: Float[Tensor, "*batch samples parts"]) -> Float[Tensor, "*batch samples rest"]:
    """Compute isometric log-ratios: coordinates of `clr` in an orthonormal (Helmert) basis.

    Coordinate k is `sqrt(k / (k + 1))` times the log of the geometric mean of the first k parts over part
    k + 1. Distances and angles are those of the centred log-ratios, without their redundant dimension.

    Args:
        X: as in `clr`.

    Returns:
        float64, one column fewer than `X`.

    Raises:
        TypeError, ValueError: as `clr`.

    Example:
        >>> X = torch.tensor([[1.0, 10.0, 100.0]])
        >>> bool(torch.isclose(ilr(X).norm(), clr(X).norm()))
        True
    """
    logs = _parts("ilr", X).log()
    k = torch.arange(1, logs.shape[-1], dtype=logs.dtype, device=logs.device)
    means = logs.cumsum(-1)[..., :-1] / k
    return (k / (k + 1)).sqrt() * (means - logs[..., 1:])


def variation_matrix(
    X: Float[Tensor, "*batch samples parts"], *, ddof: int = 1
) -> Float[Tensor, "*batch parts parts"]:
    """Compute the variances of all pairwise log-ratios (Aitchison), 0 where two parts are proportional.

    Args:
        X: as in `clr`, at least `ddof + 1` samples.
        ddof: the divisor is `samples - ddof`.

    Returns:
        float64, symmetric, zero on the diagonal.

    Raises:
        TypeError, ValueError: as `clr`, and for too few samples.

    Example:
        >>> V = variation_matrix(torch.tensor([[1.0, 2.0, 4.0], [2.0, 4.0, 1.0], [3.0, 6.0, 3.0]]))
        >>> V.round(decimals=3)  # the second part is always twice the first
        tensor([[0.0000, 0.0000, 1.1210],
                [0.0000, 0.0000, 1.1210],
                [1.1210, 1.1210, 0.0000]], dtype=torch.float64)
    """
    X = _parts("variation_matrix", X)
    if X.shape[-2] <= ddof:
        raise ValueError(f"variation_matrix needs more than ddof={ddof} samples; got {X.shape[-2]}")
    # Differences first: the variance of a nearly constant ratio would cancel away in
    # cov_ii + cov_jj - 2 cov_ij.
    centred = _clr(X)
    centred = centred - centred.mean(-2, keepdim=True)
    rows = [(centred - part).square().sum(-2) for part in centred.split(1, dim=-1)]
    return torch.stack(rows, dim=-2) / (X.shape[-2] - ddof)


def partial_correlation(
    X: Float[Tensor, "*batch samples parts"], *, shrinkage: Shrinkage = None
) -> Float[Tensor, "*batch parts parts"]:
    """Compute the correlations of pairs of parts given all others, equal for every log-ratio reference.

    The function is batched and twice differentiable. `CompositionalPartialCorrelation` is the same as an
    estimator, with tests and intervals.

    Args:
        X: as in `clr`, at least three parts.
        shrinkage: None, which needs as many samples as parts; `"basis"` (Jin et al. 2023), which shrinks
            the covariance of the log proportions and then takes log-ratios; `"clr"`, which shrinks the
            covariance of the centred log-ratios and gives up the equivalence of references; a number from 0
            to 1: basis shrinkage with that intensity.

    Returns:
        float64, symmetric, within [-1, 1] and 1 on the diagonal.

    Raises:
        TypeError, ValueError: as `clr`; for fewer than three parts or samples; for fewer samples than
            parts without shrinkage; for linearly dependent log-ratios (two parts in a constant ratio, say).

    Example:
        >>> X = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)) + 0.1
        >>> per_sample = torch.rand(20, 1) + 0.5
        >>> torch.allclose(partial_correlation(X), partial_correlation(X * per_sample), atol=1e-6)
        True
    """
    X = _parts("partial_correlation", X)
    samples, parts = X.shape[-2:]
    if parts < 3:
        raise ValueError(
            f"partial_correlation needs at least 3 parts; got {parts}: two parts have one log-ratio, and "
            "their partial correlation is +1 by construction"
        )
    if samples < 3:
        raise ValueError(f"partial_correlation needs at least 3 samples; got {samples}")
    if shrinkage is None and samples < parts:
        raise ValueError(
            f"partial_correlation needs as many samples as parts; got {samples} samples of {parts} parts: "
            "pass shrinkage='basis'"
        )
    covariance, _ = log_ratio_covariance(X, shrinkage=shrinkage)
    precision, _ = log_ratio_precision(covariance, shrinkage=shrinkage)
    return precision_to_correlation(precision)


# --- the steps, on checked float64 parts ------------------------------------------------------------------


def log_ratio_covariance(
    X: Float[Tensor, "*batch samples parts"],
    *,
    shrinkage: Shrinkage = None,
    ddof: int = 1,
    assume_centered: bool = False,
) -> tuple[Float[Tensor, "*batch parts parts"], Float[Tensor, "*batch 2"]]:
    """Return the covariance of the centred log-ratios and the intensities for correlations and variances."""
    if shrinkage is None:
        covariance = _covariance(X, ddof, assume_centered)
        return covariance, covariance.new_zeros(*covariance.shape[:-2], 2)
    if shrinkage == "clr":
        return shrunk_covariance(_clr(X), ddof=ddof, assume_centered=assume_centered)
    logs = X.log()
    logs = logs - logs.logsumexp(-1, keepdim=True)
    intensity = None if shrinkage == "basis" else float(shrinkage)
    basis, intensities = shrunk_covariance(
        logs, ddof=ddof, assume_centered=assume_centered, intensity=intensity
    )
    return centre(basis), intensities


def centre(covariance: Float[Tensor, "*batch parts parts"]) -> Float[Tensor, "*batch parts parts"]:
    """Compute G B G with G = I - 11'/D: the covariance of centred log-ratios, from that of logs, B."""
    rows = covariance.mean(-1, keepdim=True)
    return covariance - rows - rows.mT + rows.mean(-2, keepdim=True)


def shrunk_covariance(
    values: Float[Tensor, "*batch samples variables"],
    *,
    ddof: int = 1,
    assume_centered: bool = False,
    intensity: float | None = None,
) -> tuple[Float[Tensor, "*batch variables variables"], Float[Tensor, "*batch 2"]]:
    """Shrink correlations to zero and variances to their median (Schaefer and Strimmer 2005).

    The intensities minimise the expected squared error, estimated from the data: the summed sampling
    variances of the entries over the summed squared distances to the target; `intensity` sets both instead.
    A constant variable is taken as uncorrelated with all others.
    """
    n = values.shape[-2]
    centred = values if assume_centered else values - values.mean(-2, keepdim=True)
    squares = centred.square()
    variance = squares.sum(-2) / (n - 1)
    sd = variance.sqrt()[..., None, :]
    z = torch.where(sd > 0, centred / torch.where(sd > 0, sd, 1.0), 0.0)
    correlation = z.mT @ z / (n - 1)

    # Var(r_ij) = n / (n-1)^3 sum_k (w_kij - mean_k w_kij)^2 with w_kij = z_ki z_kj. Summed over all pairs,
    # the squares factorise: no array of samples x variables x variables, and no second product of matrices.
    z2 = z.square()
    w2 = z2.sum(-1).square().sum(-1) - z2.square().sum((-2, -1))
    r2 = correlation.square().sum((-2, -1)) - correlation.diagonal(dim1=-2, dim2=-1).square().sum(-1)
    of_correlations = _intensity(n / (n - 1) ** 3 * (w2 - (n - 1) ** 2 / n * r2), r2)

    median = variance.quantile(0.5, dim=-1, keepdim=True)
    spread = (squares - squares.mean(-2, keepdim=True)).square().sum((-2, -1))
    of_variances = _intensity(n / (n - 1) ** 3 * spread, (variance - median).square().sum(-1))

    intensities = torch.stack([of_correlations, of_variances], dim=-1)
    if intensity is not None:
        intensities = torch.full_like(intensities, intensity)
    kept = 1 - intensities
    shrunk_sd = (intensities[..., 1:] * median + kept[..., 1:] * variance).sqrt()
    shrunk = kept[..., :1, None] * correlation
    shrunk.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    scale = (n - 1) / (n - ddof)
    return shrunk * (shrunk_sd[..., :, None] * shrunk_sd[..., None, :]) * scale, intensities


def _intensity(noise: Tensor, distance: Tensor) -> Tensor:
    # Where the data are on the target already, every intensity gives the same; take 1.
    on_target = distance == 0
    return torch.where(on_target, 1.0, noise / torch.where(on_target, 1.0, distance)).clamp(0, 1)


# Two routes, equal to rounding. Torch's works for batches, gradients and accelerators. LAPACK's computes one
# matrix in place, with half the work for the covariance and no copies for the inverse.


def _covariance(X: Tensor, ddof: int, assume_centered: bool) -> Tensor:
    if _is_single_cpu_matrix(X):
        return torch.from_numpy(_covariance_by_blas(X, ddof, assume_centered))
    centred = _clr(X)
    if not assume_centered:
        centred = centred - centred.mean(-2, keepdim=True)
    covariance = centred.mT @ centred / (X.shape[-2] - ddof)
    return (covariance + covariance.mT) / 2


def _inverse(matrix: Tensor) -> Tensor:
    """Invert a symmetric positive definite matrix, which may be overwritten."""
    if _is_single_cpu_matrix(matrix):
        return torch.from_numpy(_inverse_by_lapack(matrix.numpy()))
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool(info.any()):
        raise RankLossError(_RANK_LOST)
    return torch.cholesky_inverse(factor)


def _is_single_cpu_matrix(matrix: Tensor) -> bool:
    return matrix.ndim == 2 and matrix.device.type == "cpu" and not matrix.requires_grad


def _covariance_by_blas(X: Tensor, ddof: int, assume_centered: bool) -> NDArray[np.float64]:
    samples, parts = X.shape
    share = 1 / (samples - ddof)
    # Column-major, of which BLAS fills the upper triangle: the lower one of the result.
    total = np.zeros((parts, parts), order="F")
    # Sums of squares about a point near the mean need one pass and cancel little.
    near = X.new_zeros(parts) if assume_centered else _clr(X[:32]).mean(0)
    offset = X.new_zeros(parts)
    for rows in X.split(_CHUNK_SIZE):
        from_near = rows.log()
        from_near.sub_(from_near.mean(1, keepdim=True)).sub_(near)
        offset += from_near.sum(0)
        total = blas.dsyrk(share, from_near.numpy().T, beta=1.0, c=total, overwrite_c=True)
    if not assume_centered:
        total = blas.dsyr(-share / samples, offset.numpy(), a=total, overwrite_a=True)
    return _mirrored(total.T)


def _inverse_by_lapack(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    factor, failed = lapack.dpotrf(matrix.T, overwrite_a=True, clean=False)
    if failed:
        raise RankLossError(_RANK_LOST)
    inverse, _ = lapack.dpotri(factor, overwrite_c=True)
    return _mirrored(inverse.T)


def _mirrored(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Copy the lower triangle onto the upper one, in chunks that stay in cache."""
    for start in range(0, len(matrix), _CHUNK_EDGE):
        stop = start + _CHUNK_EDGE
        chunk = matrix[start:stop, start:stop]
        chunk[:] = np.tril(chunk) + np.tril(chunk, -1).T
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T
    return matrix


def _clr(X: Tensor) -> Tensor:
    logs = X.log()
    return logs - logs.mean(-1, keepdim=True)


def _one_norm(matrix: Tensor) -> Tensor:
    # Along rows, which is the same for a symmetric matrix.
    if _is_single_cpu_matrix(matrix):  # BLAS makes no temporary, and is fast
        return matrix.new_tensor(np.max([blas.dasum(row) for row in matrix.numpy()]))
    norm: Tensor = torch.linalg.vector_norm(matrix.detach(), 1, dim=-1).amax(-1)
    return norm


def _parts(function: str, X: Tensor) -> Tensor:
    if not isinstance(X, Tensor) or not X.is_floating_point():
        got = str(X.dtype) if isinstance(X, Tensor) else type(X).__name__
        raise TypeError(
            f"{function} needs a floating-point tensor; got {got}: pass torch.as_tensor(X).double()"
        )
    if X.ndim < 2 or X.shape[-1] < 2 or X.numel() == 0:
        raise ValueError(
            f"{function} needs samples in rows and two or more parts in columns; got shape {tuple(X.shape)}"
        )
    low, high = X.detach().aminmax()
    if not (low > 0 and high < math.inf):  # NaN fails both
        what = "NaN" if low.isnan() else f"{low.item():g}" if low <= 0 else "infinity"
        raise ValueError(
            f"{function} needs positive finite parts; found {what}: logarithms of zeros do not exist, so "
            "replace them first (CompositionalPartialCorrelation(zero_replace=...) does) or leave the part "
            "out"
        )
    return X.double()
