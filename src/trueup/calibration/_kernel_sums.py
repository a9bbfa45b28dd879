"""Two kernel measures of calibration, free of bins: MMCE and the error of a kernel density estimate.

MMCE compares confidence $c$ and correctness $a$ in a reproducing kernel Hilbert space; for calibrated
predictions it is 0:

$$\\mathrm{MMCE}^2 = \\frac{1}{N^2} \\sum_{ij} (a_i - c_i)(a_j - c_j) e^{-|c_i - c_j| / w}$$

In ascending order of $c$ the Laplacian kernel splits into $e^{-c_i / w} e^{c_j / w}$ for $j \\le i$, so that
prefix sums give the double sum in linear time. Chunks of limited range keep the exponentials finite.

The density form estimates the density $f$ of $c$ and $f_1$ of $c$ given a correct prediction by a triweight
kernel; $r(x) = a f_1(x) / f(x)$, with the accuracy $a$, is then the accuracy at confidence $x$, and the error
is $\\int |x - r(x)| f(x) dx$. Samples are mirrored at the nearer border, where densities end. Where both
densities are negligible, the published code (`variant="official"`) repeats the last value of its integrand.
If nearly all confidences are the same, the densities end abruptly, and this value is large.

A. Kumar, S. Sarawagi, U. Jain, Trainable calibration measures for neural networks from kernel mean embeddings
(ICML 2018); J. Zhang, B. Kailkhura, T. Han, Mix-n-Match (ICML 2020, arXiv 2003.07329). Published training
losses use the square of MMCE; this is the measure, with the root.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import signal

from trueup.calibration._bins import Variant

__all__ = ["density_error", "laplacian_sum", "mmce_all_pairs"]

Values = Float[NDArray[np.floating], " samples"]
Flags = Bool[NDArray[np.bool_], " samples"]

# exp(RANGE) times any number of samples is finite in float64, and so is its reciprocal.
RANGE = 256.0
# Samples at once, so that temporaries stay in the cache.
CHUNK = 2**15


# ---- the equation ----
def mmce_all_pairs(confidence: Values, correct: Flags, width: float = 0.4) -> float:
    """Return MMCE from all pairs: quadratic in time and memory."""
    residual = correct - confidence
    kernel = np.exp(-np.abs(confidence[:, None] - confidence[None, :]) / width)
    return float(np.sqrt(max(float(residual @ kernel @ residual), 0)) / len(residual))


def laplacian_sum(confidence: Values, residual: Values, width: float) -> float:
    """Return the sum of `r_i r_j exp(-|c_i - c_j| / width)` over all pairs, for ascending confidences."""
    total, carry, start = -float(residual @ residual), 0.0, 0  # the sums below count i = j twice
    while start < len(residual):
        chunk = confidence[start : start + CHUNK].astype(np.float64)
        chunk -= chunk[0]
        chunk = chunk[: np.searchsorted(chunk, RANGE * width, side="right")]
        end = start + len(chunk)
        r = torch.from_numpy(residual[start:end])
        growth = torch.from_numpy(chunk).mul_(1 / width).exp_()  # faster than numpy's
        sums = (r * growth).cumsum(0).add_(carry)
        total += 2 * float(torch.dot(r / growth, sums))
        if end < len(residual):
            carry = float(sums[-1]) * np.exp((float(confidence[start]) - float(confidence[end])) / width)
        start = end
    return total


GRID = np.linspace(-0.6, 1.6, 2**14)
STEP = GRID[1] - GRID[0]
NEGLIGIBLE = 1e-6
NARROWEST = STEP  # so that a kernel covers several points of the grid


def density_error(confidence: Values, correct: Flags, variant: Variant = "paper") -> float:
    """Return the calibration error of kernel density estimates; NaN if they have no bandwidth.

    That is so unless correct predictions have at least two different confidences.
    """
    confidence = confidence.astype(np.float64)
    right = confidence[correct]
    if len(right) == 0 or right.min() == right.max():
        return float("nan")
    bandwidth = right.std() * (2 * len(confidence)) ** -0.2
    if variant == "paper":
        bandwidth = max(bandwidth, NARROWEST)
    f, f1 = mirrored_density(confidence, bandwidth), mirrored_density(right, bandwidth)
    known = np.maximum(f, f1) > NEGLIGIBLE
    accuracy = np.minimum(correct.mean() * f1 / np.where(known, f, 1), 1)
    integrand = np.where(known, np.abs(GRID - accuracy) * f, 0)
    if variant == "official":
        integrand = integrand[np.maximum.accumulate(np.where(known, np.arange(len(GRID)), 0))]
    inside = (GRID >= 0) & (GRID <= 1)
    return float(np.trapezoid(integrand[inside], GRID[inside]) / np.trapezoid(f[inside], GRID[inside]))


def mirrored_density(values: Values, bandwidth: float) -> Float[NDArray[np.float64], " grid"]:
    """Return a triweight density on the grid, 0 outside (0, 1).

    `bandwidth` is the standard deviation of the kernel. Samples are shared out between the two nearest points
    of the grid, which are then convolved with the kernel.
    """
    mirrored = np.concatenate([values, np.where(values < 0.5, -values, 2 - values)])
    position = (mirrored - GRID[0]) / STEP
    left = position.astype(np.int64)
    share = position - left
    mass = np.bincount(left, 1 - share, len(GRID)) + np.bincount(left + 1, share, len(GRID))
    radius = 3 * bandwidth  # the standard deviation of a triweight kernel on [-1, 1] is 1/3
    reach = int(radius / STEP)
    u = np.arange(-reach, reach + 1) * STEP / radius
    kernel = 35 / 32 * (1 - u**2) ** 3 / radius
    density = 2 / len(mirrored) * signal.fftconvolve(mass, kernel, mode="same")
    return np.where((GRID > 0) & (GRID < 1), density, 0)
