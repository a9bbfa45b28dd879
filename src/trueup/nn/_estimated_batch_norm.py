"""Batch normalisation by estimated statistics, for batches too small to have statistics of their own.

Problem: the mean and variance of one or two images are noise. Idea: normalise by estimates gathered over many
batches, which are constants for the gradient. A training batch moves them before they are used:

    m <- (1-r) m + r mean(x)        v <- (1-r) v + r mean((x - old m)^2)
    y = weight (x - m) / sqrt(v + eps) + bias

This is the batch part of batch-channel normalisation, on its own: class EstBN of the official code of Qiao,
Wang, Liu, Shen, Yuille: Micro-Batch Training with Batch-Channel Normalization and Weight Standardization,
2019, arXiv 1903.10520. That code leaves r at 0, where estimates never move; here it is 0.1.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from trueup._numerics.moments import across_processes, pool
from trueup._numerics.per_channel import instance_moments, per_channel_view
from trueup._numerics.recomputation import is_recomputing, snapshot
from trueup._numerics.upcasting import upcast_parameters
from trueup.nn._validation import (
    check_eps,
    check_input,
    check_int,
    check_rank,
    check_unit_interval,
    empty_result,
)

__all__ = ["EstimatedBatchNorm1d", "EstimatedBatchNorm2d", "estimated_batch_norm"]


# ---- the equation ----


def move_estimates(
    mean: Tensor, var: Tensor, batch_mean: Tensor, batch_var: Tensor, moving_speed: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Return the estimates after a batch of the given mean and biased variance, all `(C,)`."""
    around_old_mean = batch_var + (batch_mean - mean).square()  # = mean((x - mean)^2)
    mean = (1 - moving_speed) * mean + moving_speed * batch_mean
    var = (1 - moving_speed) * var + moving_speed * around_old_mean
    return mean, var


def estimated_batch_norm(
    input: Float[Tensor, "batch channels *spatial"],
    running_mean: Float[Tensor, " channels"],
    running_var: Float[Tensor, " channels"],
    weight: Float[Tensor, " channels"] | None = None,
    bias: Float[Tensor, " channels"] | None = None,
    training: bool = False,
    moving_speed: float = 0.1,
    eps: float = 1e-5,
    *,
    warm_start: bool = False,
    num_batches_tracked: Int[Tensor, ""] | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "batch channels *spatial"]:
    """Normalise by estimated statistics, which are constants for the gradient.

    Args:
        input: floating point, `(N, C)` or `(N, C, ...)`. A single value per channel is legal.
        running_mean, running_var: the estimates, `(C,)`; updated in place when training.
        weight, bias: `(C,)` or None.
        training: move the estimates by this batch before they are used.
        moving_speed: r in [0, 1], the weight of one batch in the estimates.
        eps: added to the estimated variance under the root.
        warm_start: replace the estimates by the mean and variance of the first batch. Needs
            `num_batches_tracked`, which is 0 before the first batch.
        num_batches_tracked: counter, increased by one when training.
        process_group: the processes whose batches move the estimates together; None: this process only.

    Raises:
        TypeError: the input is not floating point.
        ValueError: a shape or an option that does not fit.

    Source: section 5 of the paper; class EstBN of the official code.

    >>> mean, var = torch.tensor([0.0]), torch.tensor([1.0])
    >>> estimated_batch_norm(torch.tensor([[2.0], [4.0]]), mean, var, training=True, moving_speed=0.5)
    tensor([[0.2132],
            [1.0660]])
    >>> mean, var  # half way to the mean 3, and to the mean square 10 around the old mean 0
    (tensor([1.5000]), tensor([5.5000]))
    """
    per_channel = {
        "running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias
    }  # fmt: skip
    check_input("estimated_batch_norm", input, per_channel)
    if running_mean is None:
        raise ValueError(
            "estimated_batch_norm normalises by running_mean and running_var; got None: pass both"
        )
    check_unit_interval("moving_speed", moving_speed)
    check_eps(eps)
    if training and warm_start and num_batches_tracked is None:
        raise ValueError("warm_start counts batches: pass num_batches_tracked")
    # A process without samples still takes part in the sums of its group.
    if input.numel() == 0 and (process_group is None or not training):
        return empty_result(input, weight, bias)

    mean, var = running_mean, running_var
    if training and not is_recomputing():
        with torch.no_grad():
            # Detached too: forward-mode differentiation ignores `no_grad`.
            x = per_channel_view(input.detach())
            mean, var, count = estimated_statistics(
                instance_moments(x),
                x.shape[2],
                mean,
                var,
                moving_speed,
                first_batch(num_batches_tracked, input.shape[1]) if warm_start else None,
                process_group,
            )
        store_statistics(running_mean, running_var, num_batches_tracked, mean, var, count)
    # Copies: the next batch moves the buffers before this one's backward pass may have read them.
    mean, var, weight, bias = upcast_parameters(input, mean.clone(), var.clone(), weight, bias)
    return F.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)


# ---- statistics, shared with batch-channel normalisation ----


def batch_statistics(
    moments: tuple[Tensor, Tensor], area: int, process_group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the batch's mean and biased variance per channel, and its number of values per channel.

    Args:
        moments: mean and variance `(N, C)` of each instance.
        area: values per instance.
        process_group: processes that hold parts of the batch.
    """
    mean, var, count = across_processes(*pool(*moments, 0), moments[0].shape[0] * area, process_group)
    return mean, var, count if isinstance(count, Tensor) else mean.new_full((), count)


def estimated_statistics(
    moments: tuple[Tensor, Tensor],
    area: int,
    running_mean: Tensor,
    running_var: Tensor,
    moving_speed: float,
    first: Tensor | None,
    process_group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the estimates, moved by the batch, and the batch's number of values per channel.

    Where `first`, `(C,)`, is True, the batch's mean and variance replace the estimates.
    """
    # Copies: the buffers move, now or at the next batch, and the backward pass needs these values.
    mean, var = (t.to(moments[0].dtype, copy=True) for t in (running_mean, running_var))
    if moving_speed == 0 and first is None:
        return mean, var, mean.new_full((), moments[0].shape[0] * area)
    mean, var = snapshot(mean), snapshot(var)
    batch_mean, batch_var, count = batch_statistics(moments, area, process_group)
    has_samples = count > 0
    if first is not None:
        first = first & has_samples
        mean, var = torch.where(first, batch_mean, mean), torch.where(first, batch_var, var)
    if moving_speed == 0:  # rather than 0 * batch_mean, which may be NaN
        return mean, var, count
    speed = moving_speed * has_samples.to(mean.dtype)
    return *move_estimates(mean, var, batch_mean, batch_var, speed), count


def first_batch(num_batches_tracked: Tensor | None, channels: int) -> Tensor:
    """Return, per channel, whether no batch has been counted yet."""
    assert num_batches_tracked is not None  # checked by the caller
    return (num_batches_tracked == 0).expand(channels)


@torch.no_grad()
def store_statistics(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: Tensor,
) -> None:
    """Write the new statistics into the buffers and count the batch, unless it has no samples."""
    running_mean.copy_(mean)
    running_var.copy_(var)
    if num_batches_tracked is not None:
        num_batches_tracked.add_(count > 0)


# ---- layers ----


class BatchPart(nn.Module):
    """Parameters and running statistics of a batch normalisation, under the names of torch's layers."""

    _version = 2  # as in torch: older state dicts have no counter
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        affine: bool,
        track_running_stats: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_int("num_features", num_features, 1)
        self.num_features = num_features
        register_affine(self, (num_features,) if affine else None, device, dtype)
        for name in ("running_mean", "running_var"):
            value = torch.empty(num_features, device=device, dtype=dtype)
            self.register_buffer(name, value if track_running_stats else None)
        counter = torch.empty((), device=device, dtype=torch.int64)
        self.register_buffer("num_batches_tracked", counter if track_running_stats else None)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Set the running mean and the counter to zero and the running variance to one."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Reset the running statistics, and set the weight to one and the bias to zero."""
        self.reset_running_stats()
        reset_affine(self)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        # The official code keeps the speed in a buffer, which nothing sets; here it is an argument.
        state_dict.pop(f"{prefix}estbn_moving_speed", None)
        counter = self.num_batches_tracked
        if counter is not None and local_metadata.get("version", 1) < 2:
            zero = torch.zeros_like(counter, device="cpu" if counter.is_meta else None)
            state_dict.setdefault(f"{prefix}num_batches_tracked", zero)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def register_affine(
    layer: nn.Module,
    shape: tuple[int, ...] | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> None:
    """Register a weight and a bias of the given shape, or None for both if there is no shape."""
    for name in ("weight", "bias"):
        value = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        layer.register_parameter(name, value)


def reset_affine(layer: nn.Module) -> None:
    """Set the weight to one and the bias to zero, if the layer has them."""
    if isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)


class _EstimatedBatchNorm(BatchPart):
    """The part that the public layers share: all but the rank of the input."""

    _ranks: ClassVar[tuple[int, ...]]
    _shape: ClassVar[str]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        moving_speed: float = 0.1,
        affine: bool = True,
        warm_start: bool = False,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_unit_interval("moving_speed", moving_speed)
        check_eps(eps)
        super().__init__(num_features, affine, True, device, dtype)
        self.eps = eps
        self.moving_speed = moving_speed
        self.warm_start = warm_start
        self.process_group = process_group

    def forward(
        self, input: Float[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Normalise by the estimates, which a training batch moves first."""
        check_rank(type(self).__name__, input, self._ranks, self._shape)
        assert self.running_mean is not None
        assert self.running_var is not None
        return estimated_batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.moving_speed,
            self.eps,
            warm_start=self.warm_start,
            num_batches_tracked=self.num_batches_tracked,
            process_group=self.process_group,
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, moving_speed={self.moving_speed}"


class EstimatedBatchNorm1d(_EstimatedBatchNorm):
    """Batch normalisation of `(N, C)` or `(N, C, L)` by estimated statistics, for micro-batches.

    A batch of one sample is legal. The state dict is that of `torch.nn.BatchNorm1d`.

    Args:
        num_features: channels C.
        eps: added to the estimated variance under the root.
        moving_speed: r in [0, 1], the weight of one batch in the estimates. May be changed at any time.
        affine: learn a weight and a bias per channel.
        warm_start: replace the estimates by the mean and variance of the first batch. They start at 0 and 1
            otherwise, as in the official code, whatever the scale of the input.
        process_group: the processes whose batches move the estimates together, as in
            `torch.nn.SyncBatchNorm`; `torch.distributed.group.WORLD` for all. None: each process keeps its
            own estimates.
        device, dtype: of the parameters and buffers.

    Raises:
        ValueError, TypeError: a setting out of range; an input of another rank or number of channels.

    Gradient accumulation, activation checkpointing and `DistributedDataParallel` affect the estimates as
    described for `BatchChannelNorm1d`.

    Source: Qiao et al. 2019 (arXiv 1903.10520), section 5; class EstBN of the official code.

    >>> layer = EstimatedBatchNorm1d(3, moving_speed=0.05)
    >>> layer(torch.randn(1, 3)).shape
    torch.Size([1, 3])
    """

    _ranks = (2, 3)
    _shape = "(N, C) or (N, C, L)"


class EstimatedBatchNorm2d(_EstimatedBatchNorm):
    """Batch normalisation of `(N, C, H, W)` by estimated statistics; see `EstimatedBatchNorm1d`.

    >>> EstimatedBatchNorm2d(3)(torch.randn(2, 3, 5, 5)).shape
    torch.Size([2, 3, 5, 5])
    """

    _ranks = (4,)
    _shape = "(N, C, H, W)"
