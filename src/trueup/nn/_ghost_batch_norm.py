"""Ghost batch normalisation: a large batch normalised as the small batches it is made of.

Problem: the statistics of a large batch are less noisy than those of the small batch a recipe was tuned for,
and the network generalises worse. Idea: cut the batch, in order, into ghost batches of g samples; normalise
each by its own mean and biased variance, all with the same weight and bias:

    y = weight * (x - mean_k) / sqrt(var_k + eps) + bias        for the samples of ghost batch k

The running statistics move once per ghost batch, in order, by the unbiased variance, as if one `BatchNorm`
had seen them one after the other; K updates at once are  r <- (1-m)^K r + sum_k m (1-m)^(K-k) s_k.

Hoffer, Hubara, Soudry: Train longer, generalize better, NeurIPS 2017, arXiv 1705.08741. As in the official
code, and unlike the printed algorithm, the variance is averaged rather than the standard deviation.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trueup._numerics.per_channel import per_channel_view, restore_shape
from trueup._numerics.recomputation import is_recomputing
from trueup._numerics.upcasting import upcast, upcast_parameters
from trueup.nn._kernels.ghost_batch_norm import Ghosts, normalize
from trueup.nn._validation import check_eps, check_input, check_int, check_momentum, check_rank, empty_result

__all__ = ["GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d", "ghost_batch_norm"]

Remainder = Literal["merge", "keep", "drop_stats"]


# ---- the equation ----


def normalize_ghost_batches(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise K ghost batches `(K, g, C, L)`; return y, and the means and biased variances `(K, C)`."""
    mean = x.mean((1, 3), keepdim=True)
    var = (x - mean).square().mean((1, 3), keepdim=True)
    y = (x - mean) * (var + eps).rsqrt()
    y = y if weight is None else y * weight[:, None]
    y = y if bias is None else y + bias[:, None]
    return y.flatten(0, 1), mean.flatten(1), var.flatten(1)


def ghost_batch_norm(
    input: Float[Tensor, "batch channels *spatial"],
    running_mean: Float[Tensor, " channels"] | None = None,
    running_var: Float[Tensor, " channels"] | None = None,
    weight: Float[Tensor, " channels"] | None = None,
    bias: Float[Tensor, " channels"] | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    ghost_batch_size: int = 128,
    remainder: Remainder = "merge",
    num_batches_tracked: Int[Tensor, ""] | None = None,
) -> Float[Tensor, "batch channels *spatial"]:
    """Normalise each ghost batch by its own statistics.

    The arguments are those of `F.batch_norm`, then ours. With `training=False` this is ordinary batch
    normalisation by the running statistics.

    Args:
        input: floating point, `(N, C)` or `(N, C, ...)`. Samples are cut into ghost batches in order.
        running_mean, running_var: `(C,)`, updated in place when training; both or neither. Needed if
            `training` is False.
        weight, bias: `(C,)` or None, shared by all ghost batches.
        momentum: in [0, 1], weight of ONE ghost batch in the running statistics; None takes the plain average
            of all ghost batches seen, which needs `num_batches_tracked`.
        eps: added to the variance under the root.
        ghost_batch_size: samples per ghost batch, g >= 1. A batch of at most g samples is one ghost batch.
        remainder: how to treat the last N mod g samples. `"merge"` adds them to the last ghost batch;
            `"keep"` makes them a smaller ghost batch, as `x.split(g)` does; `"drop_stats"` does the
            same but keeps every ghost batch of fewer than g samples out of the running statistics.
        num_batches_tracked: counter, increased in place by the number of ghost batches that entered the
            running statistics.

    An empty batch gives an empty result and leaves the running statistics and the counter alone. A ghost
    batch with a single value per channel has no variance: an error, except under `"drop_stats"`, where the
    result is `bias` and its gradient zero. Statistics are computed in float32 or better whatever the
    input's dtype.

    Raises:
        TypeError: the input is not floating point.
        ValueError: a shape, size or option that does not fit, or a single value per channel.

    Source: section 4 and algorithm 1 of the paper; the equation above.

    >>> x = torch.arange(8.0).reshape(4, 2)
    >>> ghost_batch_norm(x, training=True, ghost_batch_size=2)
    tensor([[-1.0000, -1.0000],
            [ 1.0000,  1.0000],
            [-1.0000, -1.0000],
            [ 1.0000,  1.0000]])
    """
    per_channel = {
        "running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias
    }  # fmt: skip
    check_input("ghost_batch_norm", input, per_channel)
    _check_options(momentum, eps, ghost_batch_size, remainder)
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError(
                "ghost_batch_norm with training=False normalises by running_mean and running_var; got None: "
                "pass both, or training=True to normalise by ghost batches"
            )
        mean, var, weight, bias = upcast_parameters(input, running_mean, running_var, weight, bias)
        return F.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)
    if momentum is None and running_mean is not None and num_batches_tracked is None:
        raise ValueError("momentum=None averages over all ghost batches seen: pass num_batches_tracked")
    if input.numel() == 0:
        return empty_result(input, weight, bias)

    x = per_channel_view(input)
    samples, _, area = x.shape
    ghosts = _ghosts(samples, ghost_batch_size, remainder)
    if area == 1 and remainder != "drop_stats" and any(size == 1 for _, size in ghosts):
        raise ValueError(
            f"a ghost batch needs more than one value per channel; got input of shape {tuple(input.shape)}, "
            f"ghost_batch_size={ghost_batch_size}, remainder={remainder!r}, which leaves one with a single "
            "value: pass a larger batch, a larger ghost_batch_size or another remainder"
        )

    parameters = upcast_parameters(input, weight, bias)
    output, mean, var = normalize(x, normalize_ghost_batches, eps, ghosts, *parameters)
    if running_mean is not None and running_var is not None and not is_recomputing():
        if remainder == "drop_stats":
            ghosts = tuple((count, size) for count, size in ghosts if size >= ghost_batch_size)
        _update_running(running_mean, running_var, num_batches_tracked, mean, var, momentum, ghosts, area)
    return restore_shape(input, output)


def _ghosts(samples: int, size: int, remainder: Remainder) -> Ghosts:
    """Return the ghost batches of a batch: `split(size)`, or with the remainder merged into the last."""
    count, rest = samples // size, samples % size  # `divmod` knows no symbolic number of samples
    if rest == 0:
        return ((count, size),)
    if count == 0:
        return ((1, rest),)
    if remainder != "merge":
        return ((count, size), (1, rest))
    if count == 1:
        return ((1, samples),)
    return ((count - 1, size), (1, size + rest))


@torch.no_grad()
def _update_running(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float | None,
    ghosts: Ghosts,
    area: int,
) -> None:
    """Update the running statistics as one update per ghost batch, in order, but in closed form."""
    count = sum(run for run, _ in ghosts)
    if count == 0:
        return
    mean = mean[:count]
    # Filled on the device: a copy of numbers to an accelerator would make the host wait.
    unbiased = [var.new_full((run, 1), size * area / max(size * area - 1, 1)) for run, size in ghosts]
    var = var[:count] * torch.cat(unbiased)
    keep: float | Tensor
    if momentum is None:
        assert num_batches_tracked is not None  # checked by the caller
        seen = num_batches_tracked.to(mean.dtype)
        keep, weights = seen / (seen + count), (1 / (seen + count)).expand(count)
    else:
        later = torch.arange(count - 1, -1, -1, device=mean.device, dtype=mean.dtype)
        keep, weights = (1 - momentum) ** count, momentum * (1 - momentum) ** later
    # A product and a sum rather than a matmul, which autocast would round to half; half buffers round once.
    for running, batch in ((running_mean, mean), (running_var, var)):
        running.copy_(keep * upcast(running) + (weights.unsqueeze(1) * batch).sum(0))
    if num_batches_tracked is not None:
        num_batches_tracked.add_(count)


def _check_options(momentum: float | None, eps: float, ghost_batch_size: int, remainder: Remainder) -> None:
    check_int("ghost_batch_size", ghost_batch_size, 1)
    if remainder not in get_args(Remainder):
        raise ValueError(f"remainder must be one of {get_args(Remainder)}; got {remainder!r}")
    check_momentum(momentum)
    check_eps(eps)


class _GhostBatchNorm(_BatchNorm):
    """The part that the public layers share: all but the rank of the input."""

    _ranks: ClassVar[tuple[int, ...]]
    _shape: ClassVar[str]
    _counterpart: ClassVar[type[_BatchNorm]]

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
        bias: bool = True,
        ghost_batch_size: int = 128,
        remainder: Remainder = "merge",
    ) -> None:
        _check_options(momentum, eps, ghost_batch_size, remainder)
        if 2 in self._ranks and ghost_batch_size < 2:
            raise ValueError(
                f"{type(self).__name__} needs ghost_batch_size >= 2, a single sample has no variance; "
                f"got {ghost_batch_size}"
            )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.ghost_batch_size = ghost_batch_size
        self.remainder = remainder

    @classmethod
    def from_module(cls, module: nn.Module, **options: Any) -> _GhostBatchNorm:
        """Return a layer with the settings of a `BatchNorm` of the same rank; `trueup.nn.convert` calls this.

        Parameters and buffers are new: `convert` replaces them by those of the module.

        Raises:
            TypeError: the module is not a batch normalisation for inputs of this rank.
        """
        if not isinstance(module, cls._counterpart | cls):
            raise TypeError(
                f"{cls.__name__} takes the place of {cls._counterpart.__name__}; got {type(module).__name__}"
            )
        settings: dict[str, Any] = {
            "eps": module.eps,
            "momentum": module.momentum,
            "affine": module.affine,
            "track_running_stats": module.track_running_stats,
            "bias": not module.affine or module.bias is not None,
        }
        if isinstance(module, cls):
            settings |= {"ghost_batch_size": module.ghost_batch_size, "remainder": module.remainder}
        return cls(module.num_features, **(settings | options))

    def forward(
        self, input: Float[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Normalise by ghost batches in training or without running statistics, else by the running ones."""
        self._check_input_dim(input)
        tracks = self.track_running_stats or not self.training
        return ghost_batch_norm(
            input,
            self.running_mean if tracks else None,
            self.running_var if tracks else None,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            self.momentum,
            self.eps,
            ghost_batch_size=self.ghost_batch_size,
            remainder=self.remainder,
            num_batches_tracked=self.num_batches_tracked if tracks else None,
        )

    def _check_input_dim(self, input: Tensor) -> None:
        check_rank(type(self).__name__, input, self._ranks, self._shape)

    def extra_repr(self) -> str:
        inherited = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{inherited}, ghost_batch_size={self.ghost_batch_size}, remainder={self.remainder!r}"


class GhostBatchNorm1d(_GhostBatchNorm):
    """Ghost batch normalisation of `(N, C)` or `(N, C, L)`, in place of `torch.nn.BatchNorm1d`.

    The positional arguments are those of torch's layer, and so is the state: state dicts interchange. In
    evaluation the layer equals `BatchNorm1d`. `num_batches_tracked` counts ghost batches.

    Args:
        num_features: channels C.
        eps: added to the variance under the root.
        momentum: weight of one GHOST batch in the running statistics, in [0, 1]. A batch of K ghost batches
            updates them K times, so they forget K times faster per batch. None: the plain average.
        affine: learn a weight and a bias per channel.
        track_running_stats: if False there are no running statistics, and evaluation uses ghost batches too.
        device, dtype: of the parameters and buffers.
        bias: learn the bias, if `affine`.
        ghost_batch_size: samples per ghost batch, at least 2.
        remainder: how to treat the last samples of a batch that is no multiple of it: `"merge"`, `"keep"`
            or `"drop_stats"`, see `ghost_batch_norm`.

    Raises:
        ValueError, TypeError: a setting out of range; in training, input of another rank or number of
            channels, or a ghost batch with one value per channel.

    A forward that activation checkpointing repeats does not update the running statistics again.
    In distributed training each process has its own ghost batches, as the method defines. The buffers then
    differ between processes: broadcast or average them before evaluation.
    `SyncBatchNorm.convert_sync_batchnorm` replaces this layer too, since it is a subclass of torch's.

    Source: Hoffer, Hubara, Soudry 2017 (arXiv 1705.08741), section 4.

    >>> layer = GhostBatchNorm1d(4, ghost_batch_size=32)
    >>> layer(torch.randn(256, 4)).shape
    torch.Size([256, 4])
    >>> layer.num_batches_tracked
    tensor(8)
    """

    _ranks = (2, 3)
    _shape = "(N, C) or (N, C, L)"
    _counterpart = nn.BatchNorm1d


class GhostBatchNorm2d(_GhostBatchNorm):
    """Ghost batch normalisation of `(N, C, H, W)`, in place of `torch.nn.BatchNorm2d`.

    Arguments, state, errors and source as `GhostBatchNorm1d`, except that a ghost batch of one sample is
    legal if its channels hold more than one value each. On a CPU it is faster than `BatchNorm2d` for
    contiguous input, and slower for channels-last input.

    >>> layer = GhostBatchNorm2d(3, ghost_batch_size=8)
    >>> layer(torch.randn(32, 3, 5, 5)).shape
    torch.Size([32, 3, 5, 5])
    """

    _ranks = (4,)
    _shape = "(N, C, H, W)"
    _counterpart = nn.BatchNorm2d


class GhostBatchNorm3d(_GhostBatchNorm):
    """Ghost batch normalisation of `(N, C, D, H, W)`, in place of `torch.nn.BatchNorm3d`.

    Arguments, state, errors and source as `GhostBatchNorm2d`.

    >>> layer = GhostBatchNorm3d(3, ghost_batch_size=2)
    >>> layer(torch.randn(6, 3, 2, 5, 5)).shape
    torch.Size([6, 3, 2, 5, 5])
    """

    _ranks = (5,)
    _shape = "(N, C, D, H, W)"
    _counterpart = nn.BatchNorm3d
