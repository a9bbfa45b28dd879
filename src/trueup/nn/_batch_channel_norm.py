"""Batch-channel normalisation: batch norm, by batch or estimated statistics, then norm of groups of channels.

Problem: statistics of one or two images are noise, and norms that need no batch let channels die for all
inputs. Idea: normalise each channel by statistics gathered over many batches, which a tiny batch can afford,
and then each sample's groups of channels:

    u = weight_c (x - m_c) / sqrt(v_c + batch_eps) + bias_c                                 batch part
    y = channel_weight_g (u - mean_ng(u)) / sqrt(var_ng(u) + eps) + channel_bias_g          channel part

m and v are the batch's, or estimates (see `estimated_batch_norm`), which are constants for the gradient.

Qiao, Wang, Liu, Shen, Yuille: Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization, 2019, arXiv 1903.10520. As in the official code there is one channel_weight per group.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, get_args

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from trueup._numerics.per_channel import per_channel_view, restore_shape
from trueup._numerics.recomputation import is_recomputing
from trueup._numerics.upcasting import upcast, upcast_parameters
from trueup.nn._estimated_batch_norm import (
    BatchPart,
    first_batch,
    register_affine,
    reset_affine,
    store_statistics,
)
from trueup.nn._kernels.batch_channel_norm import Plan, normalize
from trueup.nn._validation import (
    check_eps,
    check_input,
    check_int,
    check_momentum,
    check_rank,
    check_unit_interval,
    empty_result,
    has_single_value_per_channel,
)

__all__ = ["BatchChannelNorm1d", "BatchChannelNorm2d", "batch_channel_norm"]

ChannelAffine = Literal["group", "channel"]


# ---- the equation ----


def batch_then_group_norm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    parameters: Iterable[Tensor | None],
    num_groups: int,
    eps: float,
    batch_eps: float,
) -> Tensor:
    """Normalise `x` `(N, C, L)` by the mean and variance `(C,)`, then each sample's groups of channels.

    The parameters are weight and bias of both parts, with one value per channel or per group.
    """
    channels = x.shape[1]
    per_channel = (
        None if p is None else p.repeat_interleave(channels // len(p))[:, None] for p in parameters
    )
    weight, bias, channel_weight, channel_bias = per_channel

    u = (x - mean[:, None]) * (var[:, None] + batch_eps).rsqrt()
    u = u if weight is None else u * weight
    u = u if bias is None else u + bias
    u = u.unflatten(1, (num_groups, -1))
    group_mean = u.mean((2, 3), keepdim=True)
    group_var = (u - group_mean).square().mean((2, 3), keepdim=True)
    z: Tensor = ((u - group_mean) * (group_var + eps).rsqrt()).flatten(1, 2)
    z = z if channel_weight is None else z * channel_weight
    return z if channel_bias is None else z + channel_bias


def batch_channel_norm(
    input: Float[Tensor, "batch channels *spatial"],
    running_mean: Float[Tensor, " channels"] | None,
    running_var: Float[Tensor, " channels"] | None,
    weight: Float[Tensor, " channels"] | None = None,
    bias: Float[Tensor, " channels"] | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    num_groups: int = 32,
    channel_weight: Float[Tensor, " affine"] | None = None,
    channel_bias: Float[Tensor, " affine"] | None = None,
    moving_speed: float | None = None,
    batch_eps: float = 1e-5,
    warm_start: bool = False,
    num_batches_tracked: Int[Tensor, ""] | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "batch channels *spatial"]:
    """Normalise each channel, then each sample's groups of channels.

    The arguments are those of `F.batch_norm`, then ours.

    Args:
        input: floating point, `(N, C)` or `(N, C, ...)`.
        running_mean, running_var: `(C,)`, both or neither; updated in place when training. Needed with a
            `moving_speed` and when not training.
        weight, bias: `(C,)` or None, of the batch part.
        training: update the statistics by the batch; if False, normalise by the running ones, as constants.
        momentum: for batch statistics, as in `F.batch_norm`; None takes the plain average and needs
            `num_batches_tracked`.
        eps: added to the channel part's variance under the root.
        num_groups: divides C; a group is C / num_groups neighbouring channels.
        channel_weight, channel_bias: of the channel part, `(num_groups,)`, `(C,)` or None.
        moving_speed: r in [0, 1] for estimated statistics; None for batch statistics.
        batch_eps: added to the batch part's variance under the root.
        warm_start: replace the estimates by the mean and variance of the first batch. Needs
            `num_batches_tracked`, which is 0 before the first batch.
        num_batches_tracked: counter, increased by one when training.
        process_group: the processes that share the batch part's statistics; None: this process only.

    A group of one value has no deviation; its result is `channel_bias`, as in the official code.

    Raises:
        TypeError: the input is not floating point.
        ValueError: a shape or an option that does not fit; in training with batch statistics, one value per
            channel.
        RuntimeError: a second derivative through statistics of several processes.

    Source: section 5 of the paper; the equations above.

    >>> x = torch.tensor([[[1.0, 3.0], [10.0, 30.0]]])
    >>> batch_channel_norm(x, None, None, training=True, num_groups=1)  # each channel on its own is -1, 1
    tensor([[[-1.0000,  1.0000],
             [-1.0000,  1.0000]]])
    """
    per_channel = {
        "running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias
    }  # fmt: skip
    check_input("batch_channel_norm", input, per_channel)
    channels = input.shape[1]
    _check_groups("batch_channel_norm", "input has", channels, num_groups)
    for name, value in (("channel_weight", channel_weight), ("channel_bias", channel_bias)):
        if value is not None and tuple(value.shape) not in ((num_groups,), (channels,)):
            raise ValueError(
                f"{name} needs one value per group or per channel, shape ({num_groups},) or ({channels},); "
                f"got shape {tuple(value.shape)}"
            )
    _check_options(momentum, eps, batch_eps, moving_speed)
    if running_mean is None and (moving_speed is not None or not training):
        raise ValueError(
            "batch_channel_norm normalises by running_mean and running_var unless training with batch "
            "statistics; got None: pass both, or training=True and moving_speed=None"
        )
    averages = momentum is None and moving_speed is None and running_mean is not None
    if training and num_batches_tracked is None and (warm_start or averages):
        raise ValueError("warm_start and momentum=None count batches: pass num_batches_tracked")
    if training and moving_speed is None and has_single_value_per_channel(input, process_group):
        raise ValueError(
            "batch statistics need more than one value per channel; got input of shape "
            f"{tuple(input.shape)}: pass a larger batch, or estimate the statistics (moving_speed=0.1; "
            "estimate=True of the layers)"
        )
    # A process without samples still takes part in the sums of its group.
    if input.numel() == 0 and (process_group is None or not training):
        return empty_result(input, weight, bias, channel_weight, channel_bias)

    first_pass = training and not is_recomputing()
    if not training:
        moving_speed = 0.0
    elif moving_speed is not None and not first_pass:
        moving_speed = 0.0  # a recomputed forward normalises by the estimates that the first one left
    first = first_batch(num_batches_tracked, channels) if warm_start and first_pass else None

    plan = Plan(batch_then_group_norm, num_groups, eps, batch_eps, moving_speed, process_group)
    running = running_mean, running_var, first
    parameters = upcast_parameters(input, weight, bias, channel_weight, channel_bias)
    output, mean, var, count = normalize(per_channel_view(input), plan, running, parameters)
    if first_pass and running_mean is not None and running_var is not None:
        if moving_speed is None:
            mean, var = _running_averages(
                running_mean, running_var, num_batches_tracked, mean, var, count, momentum
            )
        store_statistics(running_mean, running_var, num_batches_tracked, mean, var, count)
    return restore_shape(input, output)


@torch.no_grad()
def _running_averages(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: Tensor,
    momentum: float | None,
) -> tuple[Tensor, Tensor]:
    """Return the running mean and unbiased variance after a batch, as `torch.nn.BatchNorm2d` has them."""
    batch_weight: float | Tensor
    if momentum is None:
        assert num_batches_tracked is not None  # checked by the caller
        batch_weight = 1 / (num_batches_tracked.to(mean.dtype) + 1)
    else:
        batch_weight = momentum
    batch_weight = batch_weight * (count > 0).to(mean.dtype)  # 0 where no process has a sample
    unbiased = var * (count / (count - 1).clamp(min=1))
    # In float32 at least: half buffers round once.
    old_mean, old_var = upcast(running_mean), upcast(running_var)
    mean = (1 - batch_weight) * old_mean + batch_weight * mean
    return mean, (1 - batch_weight) * old_var + batch_weight * unbiased


def _check_groups(what: str, has: str, channels: int, num_groups: int) -> None:
    check_int("num_groups", num_groups)
    if num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"{what}: num_groups must divide the channels; {has} {channels} channels, got "
            f"num_groups={num_groups}: pass a divisor of {channels}"
        )


def _check_options(momentum: float | None, eps: float, batch_eps: float, moving_speed: float | None) -> None:
    check_momentum(momentum)
    if moving_speed is not None:
        check_unit_interval("moving_speed", moving_speed)
    check_eps(eps)
    check_eps(batch_eps, "batch_eps")


# ---- layers ----


class _BatchChannelNorm(nn.Module):
    """The part that the public layers share: all but the rank of the input."""

    _ranks: ClassVar[tuple[int, ...]]
    _shape: ClassVar[str]
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_groups: int = 32,
        estimate: bool = False,
        moving_speed: float = 0.1,
        warm_start: bool = False,
        channel_affine: ChannelAffine | None = "group",
        batch_eps: float = 1e-5,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        _check_groups(name, "the layer has", num_features, num_groups)
        _check_options(momentum, eps, batch_eps, moving_speed)
        check_unit_interval("moving_speed", moving_speed)
        if channel_affine is not None and channel_affine not in get_args(ChannelAffine):
            raise ValueError(
                f"channel_affine must be None or one of {get_args(ChannelAffine)}; got {channel_affine!r}"
            )
        if estimate and not track_running_stats:
            raise ValueError(f"{name}: estimate=True keeps running estimates; drop track_running_stats=False")
        if warm_start and not estimate:
            raise ValueError(f"{name}: warm_start needs estimates; pass estimate=True too")
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.num_groups = num_groups
        self.estimate = estimate
        self.moving_speed = moving_speed
        self.warm_start = warm_start
        self.channel_affine = channel_affine
        self.batch_eps = batch_eps
        self.process_group = process_group
        self.bn = BatchPart(num_features, affine, track_running_stats, device, dtype)
        # The official shape per group; that of torch's layers per channel.
        shapes = {"group": (1, num_groups, 1), "channel": (num_features,), None: None}
        register_affine(self, shapes[channel_affine], device, dtype)
        reset_affine(self)

    def reset_parameters(self) -> None:
        """Set the weights to one and the biases to zero, and reset the running statistics."""
        self.bn.reset_parameters()
        reset_affine(self)

    def forward(
        self, input: Float[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Normalise, and in training update the running statistics."""
        check_rank(type(self).__name__, input, self._ranks, self._shape)
        bn = self.bn
        return batch_channel_norm(
            input,
            bn.running_mean,
            bn.running_var,
            bn.weight,
            bn.bias,
            self.training or bn.running_mean is None,
            self.momentum,
            self.eps,
            num_groups=self.num_groups,
            channel_weight=None if self.weight is None else self.weight.flatten(),
            channel_bias=None if self.bias is None else self.bias.flatten(),
            moving_speed=self.moving_speed if self.estimate else None,
            batch_eps=self.batch_eps,
            warm_start=self.warm_start,
            num_batches_tracked=bn.num_batches_tracked,
            process_group=self.process_group,
        )

    def extra_repr(self) -> str:
        statistics = (
            f"estimate=True, moving_speed={self.moving_speed}"
            if self.estimate
            else f"momentum={self.momentum}"
        )
        return f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}, {statistics}"


class BatchChannelNorm1d(_BatchChannelNorm):
    """Batch-channel normalisation of `(N, C)` or `(N, C, L)`.

    The positional arguments are those of `torch.nn.BatchNorm1d`, in torch's order.

    Args:
        num_features: channels C.
        eps: added to the channel part's variance under the root.
        momentum: of batch statistics, in [0, 1]; None: the plain average. Estimates use `moving_speed`.
        affine: learn a weight and a bias per channel in the batch part.
        track_running_stats: if False there are no running statistics, and evaluation uses the batch's too.
        device, dtype: of the parameters and buffers.
        num_groups: groups of the channel part; divides C.
        estimate: normalise by estimated statistics, constants for the gradient: the form for micro-batches,
            in which a batch of one sample is legal. If False, by the batch's, as batch normalisation.
        moving_speed: r in [0, 1], the weight of one batch in the estimates. May be changed at any time.
            The official code leaves it at 0, where estimates never move.
        warm_start: replace the estimates by the mean and variance of the first batch. They start at 0 and 1
            otherwise, as in the official code, whatever the scale of the input.
        channel_affine: the channel part's weight and bias: one per `"group"`, as in the official code, of
            shape (1, num_groups, 1); one per `"channel"`, of shape (C,); or None.
        batch_eps: added to the batch part's variance under the root; 1e-5 in the official code.
        process_group: the processes that share the statistics of the BATCH part, forward and backward, as in
            `torch.nn.SyncBatchNorm`; `torch.distributed.group.WORLD` for all. None: each process uses its
            own. The channel part is always per sample.

    Raises:
        ValueError, TypeError: a setting out of range; an input of another rank or number of channels; in
            training with batch statistics, one value per channel. One value per group is legal: it gives the
            bias.
        RuntimeError: a second derivative through batch statistics of several processes.

    The state dict has the official names: `weight` and `bias` of the channel part, `bn.weight`,
    `bn.bias`, `bn.running_mean`, `bn.running_var` and `bn.num_batches_tracked`. The official
    `bn.estbn_moving_speed` is accepted and ignored: `moving_speed` is a setting of the layer.

    A training forward updates the running statistics:

    - Gradient accumulation: each micro-batch updates them, and estimates move before they are used, so one
      step on k micro-batches differs from one step on their union.
    - Activation checkpointing: a recomputed forward updates nothing. With estimates it normalises by the
      current ones. These are the first pass's if no other batch came between, as when each forward has its
      backward before the next.
    - `DistributedDataParallel` copies the first process's buffers to all others before each forward. Without
      a `process_group` this discards what the other processes saw; with one the buffers are equal anyway.

    Source: Qiao et al. 2019 (arXiv 1903.10520), section 5.

    >>> layer = BatchChannelNorm1d(8, num_groups=4, estimate=True)
    >>> layer(torch.randn(1, 8)).shape
    torch.Size([1, 8])
    >>> [name for name, _ in layer.named_parameters()]
    ['weight', 'bias', 'bn.weight', 'bn.bias']
    """

    _ranks = (2, 3)
    _shape = "(N, C) or (N, C, L)"


class BatchChannelNorm2d(_BatchChannelNorm):
    """Batch-channel normalisation of `(N, C, H, W)`.

    Arguments, state, errors and source as `BatchChannelNorm1d`. With batch statistics one sample is legal if
    its channels hold more than one value each.

    >>> layer = BatchChannelNorm2d(64, estimate=True, moving_speed=0.05)
    >>> layer(torch.randn(2, 64, 7, 7)).shape
    torch.Size([2, 64, 7, 7])
    >>> layer
    BatchChannelNorm2d(
      64, num_groups=32, eps=1e-05, estimate=True, moving_speed=0.05
      (bn): BatchPart()
    )
    """

    _ranks = (4,)
    _shape = "(N, C, H, W)"
