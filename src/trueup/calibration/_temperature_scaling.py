"""Temperature scaling: divide all logits by one number, chosen on held-out data.

A network trained to interpolate its data is over-confident on new data. Dividing its logits by a temperature
T > 1 (T < 1 if it is under-confident) changes no predicted class and often repairs the confidence:

    T = argmin_{T > 0}  mean_i  logsumexp(z_i / T) - z_{i, y_i} / T

The loss is convex in b = 1 / T. Its slope is the mean of `E[z] - z_y`, and its curvature the mean of
`Var[z]`, both under softmax(b z), so that Newton's method finds the minimum in a few passes.

Chuan Guo, Geoff Pleiss, Yu Sun, Kilian Weinberger, On Calibration of Modern Neural Networks, ICML 2017,
arXiv 1706.04599. Its limits: Muthu Chidambaram, Rong Ge, On the Limitations of Temperature Scaling for
Distributions with Overlaps, ICLR 2024, arXiv 2306.00740.

The official code of the second paper makes one step of L-BFGS with 20 inner iterations and lr=0.01, a widely
copied recipe. It stops long before the minimum: where the best temperature is 7.55, it reaches 1.106. Here
the default is the minimum; `variant="official"` gives what the official code gives.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from trueup._numerics.chunking import chunk_size
from trueup.calibration._calibrator import Calibrator, check_labels, check_weight, to_rows
from trueup.calibration._validation import ArrayLike, check_logits, from_numpy

__all__ = ["TemperatureScaler", "optimal_temperature"]

Variant = Literal["paper", "official"]


# ---- the equation ----


def temperature_nll(
    logits: Float[Tensor, "rows classes"],
    labels: Int[Tensor, " rows"],
    temperature: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """Return the mean negative log-likelihood of the labels under softmax(logits / temperature)."""
    scaled = logits / temperature
    return (scaled.logsumexp(1) - scaled.gather(1, labels[:, None])[:, 0]).mean()


def optimal_temperature(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    t_bounds: tuple[float, float] = (1e-3, 1e3),
    sample_weight: ArrayLike | None = None,
) -> Float[Tensor, ""]:
    """Return the temperature that minimizes the mean negative log-likelihood.

    The result is the minimum to a relative 1e-8. If every label has the
    largest logit, the loss falls towards T = 0, and the result is the lower bound. If the labels' logits are
    on average no larger than the mean of their rows, it falls towards T = infinity, and the result is the
    upper bound. If the logits of each row are all equal, every temperature gives the same loss, and the
    result is 1. Each of these cases warns with UserWarning.

    Args:
        logits: `(N, C)`, `(N, C, *positions)`, or `(N,)` for the logit of class 1 of two.
        target: class indices in `[0, C)`, `(N,)` or `(N, *positions)`.
        t_bounds: smallest and largest temperature, `0 < t_min <= t_max`.
        sample_weight: one non-negative weight per label.

    Returns:
        A scalar in float64 on the device of `logits`.

    Raises:
        TypeError: logits are not floating point, or labels are not integers.
        ValueError: NaN or +inf in logits, a label's own logit is -inf, a single class, labels out of range,
            bounds out of order, negative weights.

    Source: section 4.2 of Guo et al. (2017).

    Example:
        >>> import torch
        >>> logits = torch.tensor([[8.0, 0.0], [8.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
        >>> T = optimal_temperature(logits, torch.tensor([0, 0, 1, 1]))  # right three times out of four
        >>> round(float((8 / T).sigmoid()), 6)
        0.75
    """
    _check_bounds(t_bounds)
    tensor = from_numpy(logits).detach()
    check_logits(tensor)
    rows = to_rows(tensor)
    labels = check_labels(target, tensor)
    weight = check_weight(sample_weight, tensor)
    temperature, warning = _optimal_temperature(rows, labels, weight, t_bounds)
    if warning:
        warnings.warn(warning, UserWarning, stacklevel=2)
    return torch.tensor(temperature, dtype=torch.float64, device=rows.device)


class TemperatureScaler(Calibrator):
    """Divide logits by the temperature that minimizes the negative log-likelihood of held-out labels.

    Logits are `(N, C)`, `(N, C, *positions)`, or `(N,)` for the logit of class 1 of two, tensor or array.

    Args:
        t_bounds: smallest and largest temperature, `0 < t_min <= t_max`. The optimum is clipped to them, with
            a UserWarning.
        variant: `"paper"`, the optimum; `"official"`, what one step of `torch.optim.LBFGS(lr=0.01)` reaches
            from T = 1, which is usually far from the optimum. It ignores `t_bounds`.

    Attributes:
        temperature_: the temperature.
        n_features_in_: number of classes; 1 for binary logits `(N,)`.

    Raises: see `fit`, which also raises ValueError for bounds out of order or an unknown variant.

    Source: section 4.2 of Guo et al. (2017); the official code of Chidambaram and Ge (2024).

    Example:
        >>> import torch
        >>> logits = torch.tensor([[8.0, 0.0], [8.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
        >>> scaler = TemperatureScaler().fit(logits, torch.tensor([0, 0, 1, 1]))
        >>> round(scaler.temperature_, 3)
        7.282
        >>> scaler.predict_proba(logits[:1])
        tensor([[0.7500, 0.2500]])
    """

    def __init__(self, *, t_bounds: tuple[float, float] = (1e-3, 1e3), variant: Variant = "paper") -> None:
        self.t_bounds = t_bounds
        self.variant = variant

    def _fit(self, rows: Tensor, labels: Tensor, weight: Tensor | None) -> None:
        _check_bounds(self.t_bounds)
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant must be one of {get_args(Variant)}; got {self.variant!r}")
        if self.variant == "official":
            self.temperature_ = _official_temperature(rows, labels, weight)
            return
        self.temperature_, warning = _optimal_temperature(rows, labels, weight, self.t_bounds)
        if warning:
            warnings.warn(warning, UserWarning, stacklevel=3)

    def _map(self, rows: Tensor) -> Tensor:
        return rows / self.temperature_


def _optimal_temperature(
    rows: Tensor, labels: Tensor, weight: Tensor | None, t_bounds: tuple[float, float]
) -> tuple[float, str]:
    """Minimize over b = 1 / T, first roughly on some rows, then on all; return T and a warning, or ""."""
    if weight is not None:
        counted = weight > 0
        rows, labels, weight = rows[counted], labels[counted], weight[counted]
    largest = rows.amax(1)
    below = largest.double() - rows.gather(1, labels[:, None])[:, 0]
    if below.isinf().any():
        raise ValueError(
            "the logit of a label is -inf, so its likelihood is zero at any temperature: clamp logits to "
            "finite values"
        )
    t_min, t_max = t_bounds
    if not below.any():
        if (rows.amin(1) == largest).all():
            return min(max(1.0, t_min), t_max), (
                "the logits of each row are all equal, so every temperature is as good as T = 1"
            )
        return t_min, _AT_BOUND.format(
            t_min, "every label has the largest logit, and the loss falls to T = 0"
        )

    def moments(every: int, dtype: torch.dtype) -> _Moments:
        chosen = None if weight is None else weight[::every]
        return _Moments(rows[::every], largest[::every], below[::every], chosen, dtype)

    bounds = 1 / t_max, 1 / t_min
    b = 1.0
    if len(rows) >= 8 * _SUBSET:
        b = _newton(moments(len(rows) // _SUBSET, rows.dtype), b, bounds, 1e-2)
    if rows.dtype == torch.float32:
        b = _newton(moments(1, torch.float32), b, bounds, 1e-3)
    b = _newton(moments(1, torch.float64), b, bounds, 1e-6)
    if b == bounds[1]:
        return t_min, _AT_BOUND.format(t_min, "the loss still falls at the lower bound")
    if b == bounds[0]:
        return t_max, _AT_BOUND.format(t_max, "the loss still falls at the upper bound")
    return 1 / b, ""


_SUBSET = 1024  # rows that give a first estimate
_AT_BOUND = "T = {:g} is a bound, not an optimum: {}. Fit on other held-out data, or change t_bounds"


class _Moments:
    """Slope and curvature of the loss in b = 1 / T, from one pass over the logits."""

    def __init__(
        self, rows: Tensor, largest: Tensor, below: Tensor, weight: Tensor | None, dtype: torch.dtype
    ) -> None:
        self.rows, self.largest, self.below, self.weight, self.dtype = rows, largest, below, weight, dtype
        self.total = float(len(rows) if weight is None else weight.sum())
        self.chunk = chunk_size(rows, rows.shape[1] * 2, len(rows))

    def __call__(self, b: float) -> tuple[float, float]:
        # With d = max z - z and e = exp(-b d), the moments of d under softmax(b z) are sum(e d^k) / sum(e).
        means, variances = [], []
        ones = self.rows.new_ones(self.rows.shape[1], dtype=self.dtype)
        for rows, largest in zip(self.rows.split(self.chunk), self.largest.split(self.chunk), strict=True):
            d = largest.to(self.dtype)[:, None] - rows
            d.clamp_max_(1e30)  # a logit of -inf would give 0 x inf
            e = (d * -b).exp_()
            total = e @ ones
            mean = (e.mul_(d) @ ones).div_(total)
            variances.append((e.mul_(d) @ ones).div_(total).sub_(mean.square()))
            means.append(mean)
        slope, curvature = self.below - torch.cat(means).double(), torch.cat(variances).double()
        if self.weight is not None:
            slope, curvature = slope * self.weight, curvature * self.weight
        return float(slope.sum()) / self.total, float(curvature.sum()) / self.total


def _newton(moments: _Moments, b: float, bounds: tuple[float, float], tolerance: float) -> float:
    """Find the zero of the slope by Newton's method, and by bisection of log b where Newton's step is bad.

    Convergence is quadratic: the step after the last one would be about the square of `tolerance`.
    """
    low, high = bounds
    b = min(max(b, low), high)
    tried: set[float] = set()
    before = math.inf
    for _ in range(200):
        slope, curvature = moments(b)
        tried.add(b)
        if slope > 0:
            high = min(b, high)
        else:
            low = max(b, low)
        step = -slope / curvature if curvature > 0 else -math.copysign(math.inf, slope)
        new = min(max(b + step, bounds[0]), bounds[1])
        if new == b or abs(step) <= tolerance * b or high - low <= tolerance * low:
            return new
        if new in tried or not low <= new <= high or abs(step) > before / 2:
            new = math.sqrt(low * high)
        before, b = abs(new - b), new
    raise RuntimeError(f"the temperature did not converge within 200 steps; it is near {1 / b:.6g}")


def _official_temperature(rows: Tensor, labels: Tensor, weight: Tensor | None) -> float:
    """Make the official code's one step of L-BFGS, which has 20 inner iterations scaled by 0.01."""
    temperature = torch.ones(1, dtype=torch.float64, device=rows.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([temperature], lr=0.01)

    def closure() -> float:
        optimizer.zero_grad()
        losses = F.cross_entropy(rows / temperature, labels, reduction="none")
        loss = losses.mean() if weight is None else weight @ losses / weight.sum()
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        optimizer.step(closure)
    return float(temperature.detach())


def _check_bounds(t_bounds: tuple[float, float]) -> None:
    if len(t_bounds) != 2 or not 0 < t_bounds[0] <= t_bounds[1] < math.inf:
        raise ValueError(f"t_bounds must be (t_min, t_max) with 0 < t_min <= t_max < inf; got {t_bounds}")
