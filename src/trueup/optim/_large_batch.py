"""Training with large batches at the accuracy of small ones: what changes around the model.

Problem: at an equal number of epochs a batch of B_L samples generalises worse than one of B_S. The paper's
reason: fewer updates in the first, high-rate phase, in which the weights walk away from their start like log
t. Remedies, besides ghost batch normalisation: scale the learning rate so that the covariance of an update,
lr^2 / B, stays constant (`scale_lr`: sqrt rule); clip the gradient (`ghost_accumulate`); stretch the schedule
until it has as many updates as for the small batch (`adapt_regime`); or keep the rate and add noise that
restores the covariance (`multiplicative_noise`). `DistanceFromInit` measures the walk.

Hoffer, Hubara, Soudry: Train longer, generalize better, NeurIPS 2017, arXiv 1705.08741. `adapt_regime`
returns a new schedule, where the official script changes the one it is given and would stretch it twice.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, SupportsIndex, get_args

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

Rule = Literal["sqrt", "linear", "none"]


def scale_lr(lr: float, batch_size: int, base_batch_size: int, rule: Rule = "sqrt") -> float:
    """Return the learning rate for another batch size.

    Args:
        lr: learning rate tuned for `base_batch_size`, at least 0.
        batch_size: samples per batch, at least 1; warns if smaller than the base.
        base_batch_size: samples per batch that `lr` was tuned for, at least 1.
        rule: `"sqrt"` (the paper's: it keeps the covariance lr^2 / B of an update), `"linear"` or `"none"`.

    Raises:
        TypeError, ValueError: a batch size is no positive integer, the rate is negative, the rule is unknown.

    Source: section 3 of the paper: lr_L = lr_S sqrt(B_L / B_S).

    >>> scale_lr(0.1, batch_size=2048, base_batch_size=128)
    0.4
    """
    _check_sizes(batch_size=batch_size, base_batch_size=base_batch_size)
    if not lr >= 0:
        raise ValueError(f"lr must not be negative; got {lr}")
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {get_args(Rule)}; got {rule!r}")
    _warn_if_smaller(batch_size, base_batch_size)
    ratio = batch_size / base_batch_size
    factor = {"sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}[rule]
    return lr * factor


def adapt_regime(
    milestones: Iterable[SupportsIndex], epochs: int, batch_size: int, base_batch_size: int
) -> tuple[list[int], int]:
    """Stretch a schedule in epochs so that a large batch gets as many updates as the small one.

    Args:
        milestones: epochs at which the learning rate changes, at least 0.
        epochs: length of the training, at least 1.
        batch_size: samples per large batch, at least 1; if smaller than the base, warns and changes nothing.
        base_batch_size: samples per batch that the schedule was made for, at least 1.

    Returns:
        `(milestones, epochs)`, each multiplied by ceil(batch_size / base_batch_size).

    Raises:
        TypeError, ValueError: sizes or epochs are no integers in range.

    Source: "regime adaptation", section 5 of the paper.

    >>> adapt_regime([81, 122, 164], 200, batch_size=2048, base_batch_size=256)
    ([648, 976, 1312], 1600)
    """
    _check_sizes(batch_size=batch_size, base_batch_size=base_batch_size, epochs=epochs)
    milestones = list(milestones)
    for epoch in milestones:
        if isinstance(epoch, bool) or not isinstance(epoch, int | np.integer) or epoch < 0:
            raise ValueError(f"milestones are epochs, integers >= 0; got {epoch!r} in {milestones}")
    _warn_if_smaller(batch_size, base_batch_size)
    stretch = -(-batch_size // base_batch_size)
    return [int(epoch) * stretch for epoch in milestones], epochs * stretch


class Accumulated(NamedTuple):
    """The result of `ghost_accumulate`: 0-d tensors on the model's device, so that it need not synchronise.

    `loss` is the mean loss over the samples of the batch. `grad_norm` is the global L2 norm of the averaged
    gradient before clipping; the gradient was clipped if it exceeds `max_norm`.
    """

    loss: Float[Tensor, ""]
    grad_norm: Float[Tensor, ""]


def ghost_accumulate(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    inputs: Shaped[Tensor, "batch ..."],
    targets: Shaped[Tensor, "batch ..."],
    ghost_batch_size: int,
    max_norm: float | None = 5.0,
    *,
    batch_size: int | None = None,
) -> Accumulated:
    """Compute the averaged, clipped gradient of a large batch, one ghost batch at a time.

    This is the loop form of ghost batch normalisation, and of all that depends on the batch: the model's own
    `BatchNorm`, dropout and so on see one ghost batch at a time. It replaces `.grad` and takes no optimizer
    step.

    Args:
        model: any module with parameters.
        loss_fn: returns the mean loss over the samples, a scalar, from `loss_fn(model(x), y)`.
        inputs, targets: tensors of shape `(N, ...)`.
        ghost_batch_size: samples per ghost batch, at least 1. `torch.chunk` splits the batch into at most
            max(1, N // ghost_batch_size) ghost batches, which weigh the same even if the last is smaller.
        max_norm: global L2 norm to which the averaged gradient is clipped, above 0; None does not clip. With
            a `GradScaler` pass None, scale inside `loss_fn`, then unscale and clip.
        batch_size: the nominal batch size N. With it, an epoch's last, smaller batch is split into as many,
            smaller ghost batches, as the official loop does.

    Raises:
        TypeError: `loss_fn` returns no scalar tensor, or a size is no integer.
        ValueError: inputs and targets differ in length, the batch is empty, a size or norm is out of range,
            or the model has no parameters to train.

    Source: section 4 of the paper, the official loop; clipping at 5 as there.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    >>> x, y = torch.randn(64, 3), torch.randint(2, (64,))
    >>> loss, grad_norm = ghost_accumulate(model, nn.functional.cross_entropy, x, y, ghost_batch_size=16)
    >>> model[1].num_batches_tracked
    tensor(4)
    """
    _check_sizes(ghost_batch_size=ghost_batch_size)
    if batch_size is not None:
        _check_sizes(batch_size=batch_size)
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(
            f"inputs and targets must have the same number of samples, at least one; got {len(inputs)} and "
            f"{len(targets)}"
        )
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"max_norm must be positive, or None for no clipping; got {max_norm}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no parameter that requires a gradient")

    count = max((len(inputs) if batch_size is None else batch_size) // ghost_batch_size, 1)
    ghost_batches = list(zip(inputs.chunk(count), targets.chunk(count), strict=True))
    for parameter in parameters:
        parameter.grad = None
    losses = []
    for x, y in ghost_batches:
        loss = loss_fn(model(x), y)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise TypeError(
                f"loss_fn must return a scalar tensor, the mean over the samples; got {_describe(loss)}. "
                "Reduce it with .mean()"
            )
        (loss / len(ghost_batches)).backward()
        losses.append(loss.detach() * (len(x) / len(inputs)))
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return Accumulated(torch.stack(losses).sum(), norm)


def multiplicative_noise(
    losses: Float[Tensor, " batch"], base_batch_size: int, generator: torch.Generator | None = None
) -> Float[Tensor, ""]:
    """Return the mean loss of a large batch with the gradient noise of a small one.

    Each sample's loss is weighted by an independent z ~ N(1, s^2), with s^2 = B_L / B_S - 1, so that the
    covariance of the gradient, (1 + s^2) / B_L, is that of the small batch. It is an alternative to
    `scale_lr`.

    Args:
        losses: one loss per sample, of shape `(B_L,)` (`reduction="none"`).
        base_batch_size: B_S, the size of the small batch, at least 1; if above B_L, warns and adds no noise.
        generator: source of the noise, on the device of `losses`.

    Raises:
        TypeError: `base_batch_size` is no integer.
        ValueError: `losses` is empty or not one-dimensional, or `base_batch_size` is below 1.

    Source: the paper's section on multiplicative noise, z_n ~ N(1, s^2) with s^2 proportional to the batch.

    >>> losses = nn.functional.cross_entropy(torch.zeros(64, 10), torch.zeros(64).long(), reduction="none")
    >>> noisy = multiplicative_noise(losses, base_batch_size=8, generator=torch.Generator().manual_seed(0))
    >>> bool(noisy != losses.mean())
    True
    """
    _check_sizes(base_batch_size=base_batch_size)
    if losses.dim() != 1 or len(losses) == 0:
        raise ValueError(
            f"losses must be one loss per sample, of shape (batch,); got {_describe(losses)}. "
            "Compute them with reduction='none'"
        )
    _warn_if_smaller(len(losses), base_batch_size)
    std = math.sqrt(max(len(losses) / base_batch_size - 1, 0.0))
    # Drawn in float32 or better: a half type would round small deviations away.
    dtype = torch.promote_types(losses.dtype, torch.float32)
    z = 1 + std * torch.randn(len(losses), generator=generator, device=losses.device, dtype=dtype)
    return (z.to(losses.dtype) * losses).mean()


class DistanceFromInit:
    """The distance of the weights from their start, ||w_t - w_0||, and the law by which it grows.

    In the paper's picture training starts as a random walk on a random landscape, which is ultra-slow:
    d_t = a log t + c. Create this before training, call `update` after every optimizer step of the first,
    high-rate phase, then call `fit`. It keeps a copy of the parameters; `update` reads numbers from the
    device.

    Args:
        model: the model whose parameters to measure, trained or not.

    Raises:
        ValueError: the model has no parameters.

    Source: section 3 of the paper; the log law is for alpha = 2 in ||w_t - w_0|| ~ (log t)^(2/alpha).

    >>> model = nn.Linear(3, 1)
    >>> distance = DistanceFromInit(model)
    >>> with torch.no_grad():
    ...     for t in range(1, 201):
    ...         _ = model.bias.add_(math.log((t + 1) / t))
    ...         _ = distance.update()
    >>> fit = distance.fit()
    >>> max(fit, key=fit.get)
    'log'
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(model.parameters())
        if not self._parameters:
            raise ValueError("DistanceFromInit needs a model with parameters; got one without any")
        self._start = [p.detach().clone() for p in self._parameters]
        self.distances: list[float] = []

    @torch.no_grad()
    def update(self) -> float:
        """Measure ||w_t - w_0||_2 over all parameters, after update number t = 1, 2, ...

        Raises:
            RuntimeError: a parameter has changed its shape or device since the start.
        """
        squares = []
        for now, start in zip(self._parameters, self._start, strict=True):
            if now.shape != start.shape or now.device != start.device:
                raise RuntimeError(
                    f"a parameter was {tuple(start.shape)} on {start.device} at the start and is "
                    f"{tuple(now.shape)} on {now.device} now. Create DistanceFromInit after moving the model"
                )
            moved = (now - start).to(torch.promote_types(now.dtype, torch.float32))
            squares.append(moved.square().sum(dtype=torch.float64))
        self.distances.append(math.sqrt(sum(square.item() for square in squares)))
        return self.distances[-1]

    def fit(self, min_updates: int = 100) -> dict[str, float]:
        """Return R^2 of the least-squares fits d = a f(t) + c for f = log t, sqrt t and t.

        Args:
            min_updates: the least number of measurements, at least 3, since any smooth curve fits a few.

        Returns:
            `{"log": ..., "sqrt": ..., "linear": ...}`, each at most 1; the largest names the law.

        Raises:
            ValueError: there are too few updates, or distances are constant or not finite.
        """
        count = len(self.distances)
        if count < max(min_updates, 3):
            raise ValueError(
                f"fit needs at least {max(min_updates, 3)} updates, since any curve fits a few; got {count}. "
                "Call update() after every optimizer step"
            )
        d = np.asarray(self.distances)
        if not np.isfinite(d).all():
            first = int(np.flatnonzero(~np.isfinite(d))[0]) + 1
            raise ValueError(f"the distance is not finite from update {first} on. The training has diverged")
        if np.ptp(d) == 0:
            raise ValueError(f"the distance is {d[0]} at every update. Check that the parameters change")
        t = np.arange(1, count + 1)
        return {
            law: float(np.corrcoef(f, d)[0, 1] ** 2)
            for law, f in {"log": np.log(t), "sqrt": np.sqrt(t), "linear": t}.items()
        }


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer):
            raise TypeError(f"{name} must be an integer; got {size!r}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")


def _warn_if_smaller(batch_size: int, base_batch_size: int) -> None:
    if batch_size < base_batch_size:
        warnings.warn(
            f"batch_size {batch_size} is smaller than base_batch_size {base_batch_size}, "
            "but these remedies are for larger batches",
            stacklevel=3,
        )


def _describe(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
