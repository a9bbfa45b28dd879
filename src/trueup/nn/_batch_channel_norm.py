"""Batch-channel normalisation: batch norm, often by estimated statistics, then one of groups of channels.

Problem: statistics of one or two images are noise, and norms that need no batch let channels die for all
inputs. Idea: normalise each channel by statistics gathered over many batches, which a tiny batch can afford,
and then each sample's groups of channels:

    u = weight_c (x - m_c) / sqrt(v_c + batch_eps) + bias_c                                 batch part
    y = channel_weight_g (u - mean_ng(u)) / sqrt(var_ng(u) + eps) + channel_bias_g          channel part

m and v are the batch's; or estimates, which are constants for the gradient and move before they are used:

    m <- (1-r) m + r mean(x)        v <- (1-r) v + r mean((x - old m)^2)

Qiao, Wang, Liu, Shen, Yuille: Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization, 2019, arXiv 1903.10520. As in the official code there is one channel_weight a group. That
code leaves r at 0, where estimates never move; here it is 0.1.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from trueup._numerics.per_channel import instance_moments, per_channel_view, restore_shape
from trueup._numerics.recomputation import is_recomputing
from trueup._numerics.upcasting import upcast, upcast_parameters
from trueup.nn._kernels.batch_channel_norm import Plan, batch_statistics, normalize
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

__all__ = [
    "BatchChannelNorm1d",
    "BatchChannelNorm2d",
    "EstimatedBatchNorm1d",
    "EstimatedBatchNorm2d",
    "batch_channel_norm",
    "estimated_batch_norm",
]

ChannelAffine = Literal["group", "channel"]


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
    """Batch part, then channel part; the arguments are those of `F.batch_norm`, then ours.

    Args:
        input: floating point, ``(N, C)`` or ``(N, C, ...)``.
        running_mean, running_var: ``(C,)``, both or neither; updated in place when training. Needed with a
            ``moving_speed`` and when not training.
        weight, bias: ``(C,)`` or None, of the batch part.
        training: take the batch into the statistics; else normalise by the running ones, as constants.
        momentum: for batch statistics, as in `F.batch_norm`; None takes the plain average and needs
            ``num_batches_tracked``.
        eps: under the root of the channel part.
        num_groups: divides C; each group is of C / num_groups neighbouring channels.
        channel_weight, channel_bias: of the channel part, ``(num_groups,)``, or one a channel, or None.
        moving_speed: r in [0, 1] for estimated statistics; None for batch statistics.
        batch_eps: under the root of the batch part.
        warm_start: let the first batch's mean and variance stand for the estimates it finds. Needs
            ``num_batches_tracked``, which tells the first batch from others.
        num_batches_tracked: counter, moved by one when training.
        process_group: over whose processes the batch part's statistics are taken; None: this one alone.

    A group of one value, which has no deviation, gives its ``channel_bias``, as in the official code.

    Raises:
        TypeError: the input is not floating point.
        ValueError: a shape or an option that does not fit; in training, one value a channel with batch
            statistics.
        RuntimeError: a second derivative through statistics of several processes.

    Source: section 5 of the paper; the equations above.

    >>> x = torch.tensor([[[1.0, 3.0], [10.0, 30.0]]])
    >>> batch_channel_norm(x, None, None, training=True, num_groups=1)  # each channel alone is -1, 1
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
                f"{name} needs one value a group or one a channel, shape ({num_groups},) or ({channels},); "
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
    # A process without samples still has to take part in the sums of its group.
    if input.numel() == 0 and (process_group is None or not training):
        return empty_result(input, weight, bias, channel_weight, channel_bias)

    first_pass = training and not is_recomputing()
    if not training:
        speed: float | None = 0.0
    elif moving_speed is not None:
        # A recomputed forward normalises by what the first one made of the estimates.
        speed = moving_speed if first_pass else 0.0
    else:
        speed = None
    fresh = _fresh(num_batches_tracked, channels) if warm_start and first_pass else None

    plan = Plan(num_groups, eps, batch_eps, speed, process_group)
    estimates = running_mean, running_var, fresh
    parameters = upcast_parameters(input, weight, bias, channel_weight, channel_bias)
    output, mean, var, count = normalize(per_channel_view(input), plan, *estimates, *parameters)
    if first_pass and running_mean is not None and running_var is not None:
        if speed is None:
            _update_running(running_mean, running_var, num_batches_tracked, mean, var, count, momentum)
        else:
            _put(running_mean, running_var, num_batches_tracked, mean, var, count)
    return restore_shape(input, output)


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
    """The batch part alone, by estimated statistics, which are constants for the gradient.

    Arguments, errors and source as `batch_channel_norm`. Training on a single value a channel is legal.

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
    if input.numel() == 0 and (process_group is None or not training):
        return empty_result(input, weight, bias)

    mean, var = running_mean, running_var
    if training and not is_recomputing():
        with torch.no_grad():
            fresh = _fresh(num_batches_tracked, input.shape[1]) if warm_start else None
            # Detached too: forward-mode differentiation heeds no `no_grad`.
            x, plan = per_channel_view(input.detach()), Plan(1, 0.0, eps, moving_speed, process_group)
            mean, var, count = batch_statistics(instance_moments(x), x.shape[2], mean, var, fresh, plan)
        _put(running_mean, running_var, num_batches_tracked, mean, var, count)
    # Copies, since backward needs them and the next batch moves the running ones.
    mean, var, weight, bias = upcast_parameters(input, mean.clone(), var.clone(), weight, bias)
    return F.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)


# ---- running statistics ----


def _fresh(num_batches_tracked: Tensor | None, channels: int) -> Tensor:
    assert num_batches_tracked is not None  # checked by the caller
    return (num_batches_tracked == 0).expand(channels)


@torch.no_grad()
def _put(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: Tensor,
) -> None:
    running_mean.copy_(mean)
    running_var.copy_(var)
    if num_batches_tracked is not None:
        num_batches_tracked.add_(count > 0)


@torch.no_grad()
def _update_running(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: Tensor,
    momentum: float | None,
) -> None:
    """As `torch.nn.BatchNorm2d`: the running variance is of unbiased ones."""
    share: float | Tensor
    if momentum is None:
        assert num_batches_tracked is not None  # checked by the caller
        share = 1 / (num_batches_tracked.to(mean.dtype) + 1)
    else:
        share = momentum
    share = share * (count > 0).to(mean.dtype)  # 0 where no process has a sample
    unbiased = var * (count / (count - 1).clamp(min=1))
    # In float32 at least: half buffers round once.
    old_mean, old_var = upcast(running_mean), upcast(running_var)
    mean, var = (1 - share) * old_mean + share * mean, (1 - share) * old_var + share * unbiased
    _put(running_mean, running_var, num_batches_tracked, mean, var, count)


# ---- bad input ----


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


class _BatchPart(nn.Module):
    """Parameters and running statistics of a batch normalisation, and how they are loaded."""

    _version = 2  # as of torch's: weights from before it come without a counter
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
        _register_affine(self, (num_features,) if affine else None, device, dtype)
        for name in ("running_mean", "running_var"):
            value = torch.empty(num_features, device=device, dtype=dtype)
            self.register_buffer(name, value if track_running_stats else None)
        counter = torch.empty((), device=device, dtype=torch.int64)
        self.register_buffer("num_batches_tracked", counter if track_running_stats else None)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """The running mean and the counter to zero, the running variance to one."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """The running statistics as `reset_running_stats`, the weight to one, the bias to zero."""
        self.reset_running_stats()
        _reset_affine(self)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        # The official code keeps this setting in a buffer, where nothing sets it; here it is an argument.
        state_dict.pop(f"{prefix}estbn_moving_speed", None)
        counter = self.num_batches_tracked
        if counter is not None and local_metadata.get("version", 1) < 2:
            none_seen = torch.zeros_like(counter, device="cpu" if counter.is_meta else None)
            state_dict.setdefault(f"{prefix}num_batches_tracked", none_seen)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class _BatchChannelNorm(nn.Module):
    """What the two public layers share; theirs is the rank of the input."""

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
            raise ValueError(f"{name}: estimate=True keeps its estimates; drop track_running_stats=False")
        if warm_start and not estimate:
            raise ValueError(f"{name}: warm_start is for estimates; pass estimate=True too")
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
        self.bn = _BatchPart(num_features, affine, track_running_stats, device, dtype)
        # One value a group has the official shape, one a channel that of torch's layers.
        shapes = {"group": (1, num_groups, 1), "channel": (num_features,), None: None}
        _register_affine(self, shapes[channel_affine], device, dtype)
        _reset_affine(self)

    def reset_parameters(self) -> None:
        """Both parts' weights to one and biases to zero, and the running statistics as in a new layer."""
        self.bn.reset_parameters()
        _reset_affine(self)

    def forward(
        self, input: Float[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Normalise, and in training move the running statistics."""
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
    """Batch-channel normalisation of ``(N, C)`` or ``(N, C, L)``.

    Arguments before the star are those of `torch.nn.BatchNorm1d`, in torch's order.

    Args:
        num_features: channels C.
        eps: added to the channel part's variance under the root.
        momentum: of batch statistics, in [0, 1]; None: the plain average. Estimates have ``moving_speed``.
        affine: learn a weight and a bias per channel in the batch part.
        track_running_stats: if False there are no running statistics, and evaluation takes the batch's too.
        device, dtype: of the parameters and buffers.
        num_groups: groups of the channel part; divides C.
        estimate: normalise by estimated statistics, constants for the gradient: the form for micro-batches,
            in which a batch of one sample is legal. If False, by the batch's, as batch normalisation.
        moving_speed: r in [0, 1], weight of one batch in the estimates. It may be set at any time.
        warm_start: let the first batch's mean and variance take the place of the estimates it finds, which
            are 0 and 1 in a new layer whatever the scale of its input. The official code does not.
        channel_affine: whether the channel part learns a weight and a bias for each ``"group"``, as in the
            official code, of shape (1, num_groups, 1); for each ``"channel"``, of shape (C,); or None.
        batch_eps: added to the batch part's variance under the root; the official code knows only 1e-5.
        process_group: processes over which the statistics of the BATCH part are taken, forward and backward,
            as in `torch.nn.SyncBatchNorm`; for all pass ``torch.distributed.group.WORLD``. None: each process
            takes its own. The channel part never leaves a sample.

    Raises:
        ValueError, TypeError: a setting out of range; an input of another rank or number of channels; in
            training, one value a channel with batch statistics. One value a group is legal: it gives bias.
        RuntimeError: a second derivative through batch statistics of several processes.

    The state dict has the official names: ``weight`` and ``bias`` of the channel part, ``bn.weight``,
    ``bn.bias``, ``bn.running_mean``, ``bn.running_var`` and ``bn.num_batches_tracked``. The official
    ``bn.estbn_moving_speed`` is accepted and not restored: ``moving_speed`` is a setting of the layer.

    What a training forward does to the running statistics:

    - Gradient accumulation: each micro-batch moves them, and estimates move before they are used: one step on
      k micro-batches is not one on their union.
    - Activation checkpointing: a recomputed forward moves nothing. With estimates it normalises by those that
      it finds, which are the first pass's if no other batch came between, as is so when each forward has its
      backward before the next.
    - `DistributedDataParallel` copies the first process's buffers to all before each forward, so that without
      a ``process_group`` what the others saw is lost; with one the buffers are equal anyway.

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
    """Batch-channel normalisation of ``(N, C, H, W)``.

    Arguments, state, errors and source as `BatchChannelNorm1d`. With batch statistics one sample is legal
    where its plane holds more than one value.

    >>> layer = BatchChannelNorm2d(64, estimate=True, moving_speed=0.05)
    >>> layer(torch.randn(2, 64, 7, 7)).shape
    torch.Size([2, 64, 7, 7])
    >>> layer
    BatchChannelNorm2d(
      64, num_groups=32, eps=1e-05, estimate=True, moving_speed=0.05
      (bn): _BatchPart()
    )
    """

    _ranks = (4,)
    _shape = "(N, C, H, W)"


class _EstimatedBatchNorm(_BatchPart):
    """What the two public layers share; theirs is the rank of the input."""

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
    """The batch part alone, by estimated statistics, of ``(N, C)`` or ``(N, C, L)``: batch normalisation for
    micro-batches, whose state dict is that of `torch.nn.BatchNorm1d`.

    Args:
        num_features: channels C.
        eps: added to the estimated variance under the root.
        moving_speed: r in [0, 1], weight of one batch in the estimates.
        affine: learn a weight and a bias per channel.
        warm_start, process_group, device, dtype: see `BatchChannelNorm1d`.

    Raises:
        ValueError, TypeError: as `BatchChannelNorm1d`; one value a channel is legal.

    Under gradient accumulation, activation checkpointing and `DistributedDataParallel` it behaves as
    `BatchChannelNorm1d`.

    Source: Qiao et al. 2019 (arXiv 1903.10520), section 5; class EstBN of the official code.

    >>> layer = EstimatedBatchNorm1d(3, moving_speed=0.05)
    >>> layer(torch.randn(1, 3)).shape
    torch.Size([1, 3])
    """

    _ranks = (2, 3)
    _shape = "(N, C) or (N, C, L)"


class EstimatedBatchNorm2d(_EstimatedBatchNorm):
    """The same of ``(N, C, H, W)``; see `EstimatedBatchNorm1d`.

    >>> EstimatedBatchNorm2d(3)(torch.randn(2, 3, 5, 5)).shape
    torch.Size([2, 3, 5, 5])
    """

    _ranks = (4,)
    _shape = "(N, C, H, W)"


def _register_affine(
    layer: nn.Module,
    shape: tuple[int, ...] | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> None:
    """A weight and a bias of that shape; neither, if there is none."""
    for name in ("weight", "bias"):
        value = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        layer.register_parameter(name, value)


def _reset_affine(layer: _BatchPart | _BatchChannelNorm) -> None:
    if layer.weight is not None and layer.bias is not None:
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
