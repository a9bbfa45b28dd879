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

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trueup._numerics.chunking import chunk_size, write
from trueup._numerics.custom_function import fold_vmap_dim, must_use_composite_ops, vjp
from trueup._numerics.moments import pool
from trueup._numerics.per_channel import (
    instance_affine,
    instance_moments,
    instance_sums,
    is_channels_last,
    per_channel_view,
    restore_shape,
)
from trueup._numerics.recomputation import is_recomputing
from trueup._numerics.upcasting import upcast, upcast_parameters
from trueup.nn._validation import check_eps, check_input, check_int, check_momentum, check_rank, empty_result

__all__ = ["GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d", "ghost_batch_norm"]

Remainder = Literal["merge", "keep", "drop_stats"]

# Consecutive ghost batches of equal size: (how many, how many rows each). One block, or two with a remainder.
_Blocks = tuple[tuple[int, int], ...]


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
    """Normalise each ghost batch by its own statistics; the arguments are those of `F.batch_norm`, then ours.

    With ``training=False`` this is ordinary batch normalisation by the running statistics.

    Args:
        input: floating point, ``(N, C)`` or ``(N, C, ...)``. Samples are cut into ghost batches in order.
        running_mean, running_var: ``(C,)``, updated in place when training; both or neither. Needed if
            ``training`` is False.
        weight, bias: ``(C,)`` or None, shared by all ghost batches.
        momentum: in [0, 1], weight of ONE ghost batch in the running statistics; None takes the plain average
            of all ghost batches seen, which needs ``num_batches_tracked``.
        eps: added to the variance under the root.
        ghost_batch_size: samples in a ghost batch, g >= 1. A batch of at most g samples is one ghost batch.
        remainder: what becomes of the last N mod g samples. ``"merge"`` adds them to the last ghost batch;
            ``"keep"`` makes them a smaller ghost batch, as ``x.split(g)`` does; ``"drop_stats"`` does the
            same but keeps every ghost batch of fewer than g samples out of the running statistics.
        num_batches_tracked: counter, advanced in place by the number of ghost batches that entered the
            running statistics.

    An empty batch gives an empty result and leaves the running statistics and the counter alone. A ghost
    batch with a single value per channel has no variance: an error, except under ``"drop_stats"``, where the
    result is ``bias`` and its gradient zero. Statistics are taken in float32 or better whatever the input's
    dtype.

    Raises:
        TypeError: the input is not floating point.
        ValueError: a shape, size or option that does not fit, or a single value per channel.

    Source: section 4 and algorithm 1 of the paper; eq. above.

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
    check_input("ghost batch norm", input, per_channel)
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

    planes = per_channel_view(input)
    samples, _, area = planes.shape
    ghosts = _cut(samples, ghost_batch_size, remainder)
    if area == 1 and remainder != "drop_stats" and any(size == 1 for _, size in ghosts):
        raise ValueError(
            f"a ghost batch needs more than one value per channel; got input of shape {tuple(input.shape)}, "
            f"ghost_batch_size={ghost_batch_size}, remainder={remainder!r}, which leaves one with one value: "
            "pass a larger batch, a larger ghost_batch_size or another remainder"
        )

    output, mean, var = _normalize(planes, eps, ghosts, *upcast_parameters(input, weight, bias))
    if running_mean is not None and running_var is not None and not is_recomputing():
        if remainder == "drop_stats":
            ghosts = tuple((count, size) for count, size in ghosts if size >= ghost_batch_size)
        _update_running(running_mean, running_var, num_batches_tracked, mean, var, momentum, ghosts, area)
    return restore_shape(input, output)


def _cut(samples: int, size: int, remainder: Remainder) -> _Blocks:
    """The ghost batches of a batch: ``split(size)``, or with the remainder merged into the last."""
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


def _split(t: Tensor, blocks: Iterable[tuple[int, int]]) -> Iterator[Tensor]:
    """Views ``(count, size, ...)`` of the rows of each block."""
    start = 0
    for count, size in blocks:
        yield t[start : start + count * size].unflatten(0, (count, size))
        start += count * size


def _mean(t: Tensor, blocks: _Blocks) -> Tensor:
    """``(rows, C)`` -> ``(ghosts, C)``: the mean over each ghost batch."""
    return torch.cat([block.mean(1) for block in _split(t, blocks)])


def _spread(t: Tensor, blocks: _Blocks) -> Tensor:
    """``(ghosts, C)`` -> ``(rows, C)``: each row gets its ghost batch's value."""
    parts = t.split([count for count, _ in blocks])
    return torch.cat([part.repeat_interleave(size, 0) for part, (_, size) in zip(parts, blocks, strict=True)])


class _GhostNormalize(torch.autograd.Function):
    """Planes ``(N, C, L)`` -> normalised, and mean and biased variance ``(ghosts, C)``.

    The moments are for the running statistics and carry no gradient. Saved for backward: x, and what is of
    the size of the moments.
    """

    @staticmethod
    def forward(
        x: Tensor, eps: float, blocks: _Blocks, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        route = _normalize_rows if is_channels_last(x) else _normalize_planes
        return route(x, eps, blocks, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.eps, ctx.blocks, *parameters = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, mean, var, *parameters)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, mean, var, *parameters = ctx.saved_tensors
        options = ctx.eps, ctx.blocks
        if torch.is_grad_enabled():
            found = vjp(lambda x, *p: _normalize_plainly(x, *options, *p)[0], grads[0], x, *parameters)
        else:
            route = _row_gradients if is_channels_last(x) else _plane_gradients
            found = route(grads[0], x, *options, mean, var, *parameters)
        grad_x, *of_parameters = found
        return grad_x, None, None, *of_parameters

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        x, eps, blocks, *parameters = args
        x, *parameters = fold_vmap_dim(info.batch_size, (x, *parameters), (in_dims[0], *in_dims[3:]))
        outputs = _GhostNormalize.apply(x, eps, blocks, *parameters)  # type: ignore[no-untyped-call]
        return tuple(t.unflatten(1, (info.batch_size, -1)) for t in outputs), (1, 1, 1)


def _normalize(
    x: Tensor, eps: float, blocks: _Blocks, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if must_use_composite_ops():
        return _normalize_plainly(x, eps, blocks, weight, bias)
    result = _GhostNormalize.apply(x, eps, blocks, weight, bias)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor, Tensor], result)


def _normalize_plainly(
    x: Tensor, eps: float, blocks: _Blocks, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The equation as it is printed, in operations that autograd knows."""
    outputs, means, variances = [], [], []
    for v in _split(upcast(x), blocks):
        mean = v.mean((1, 3), keepdim=True)
        var = (v - mean).square().mean((1, 3), keepdim=True)
        y = (v - mean) * (var + eps).rsqrt()
        y = y if weight is None else y * weight.unsqueeze(1)
        y = y if bias is None else y + bias.unsqueeze(1)
        outputs.append(y.flatten(0, 1))
        means.append(mean.flatten(1))
        variances.append(var.flatten(1))
    return torch.cat(outputs).to(x.dtype), torch.cat(means).detach(), torch.cat(variances).detach()


# ---- two routes: planes of values one after the other; rows of channels, one a place ----


def _normalize_planes(
    x: Tensor, eps: float, blocks: _Blocks, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    pooled = [
        pool(means, variances, 1)
        for means, variances in zip(*(_split(t, blocks) for t in instance_moments(x)), strict=True)
    ]
    mean, var = (torch.cat(values) for values in zip(*pooled, strict=True))

    center = _spread(mean, blocks)
    scale = _spread((var + eps).rsqrt(), blocks)
    if weight is not None:
        scale = scale * weight
    shift = torch.zeros_like(scale) if bias is None else bias.expand_as(scale)
    return instance_affine(x, center, scale, shift), mean, var


def _normalize_rows(
    x: Tensor, eps: float, blocks: _Blocks, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    output = torch.empty_like(x)
    means, variances = [], []
    for rows, normalized in _row_blocks(blocks, x, output):
        wide = upcast(rows)
        mean = wide.mean(1, keepdim=True)
        centered = wide - mean
        var = centered.square().mean(1, keepdim=True)
        rstd = (var + eps).rsqrt()
        scale = rstd if weight is None else rstd * weight
        if bias is None:
            write(normalized, torch.mul, centered, scale)
        else:
            write(normalized, torch.addcmul, bias, centered, scale)
        means.append(mean.squeeze(1))
        variances.append(var.squeeze(1))
    return output, torch.cat(means), torch.cat(variances)


def _row_blocks(blocks: _Blocks, *planes: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views ``(count, rows, C)`` of the same ghost batches of each, few at a time: temporaries are small."""
    samples, features, area = planes[0].shape
    strips = []
    for count, size in blocks:
        # Twice `chunk_size` takes for the cache: with so many small steps a block, their calls cost more.
        most = chunk_size(planes[0], size * area * features // 2, count)
        strips += [(min(most, count - done), size * area) for done in range(0, count, most)]
    return zip(
        *(_split(t.transpose(1, 2).reshape(samples * area, features), strips) for t in planes), strict=True
    )


# The gradients below are, with r = 1/sqrt(var_k + eps), z = (x - mean_k) r and means over ghost batch k,
#     grad_x = weight * r * (grad - mean(grad) - z * mean(grad * z))
#     grad_weight = sum(grad * z),  grad_bias = sum(grad)


def _plane_gradients(
    grad: Tensor,
    x: Tensor,
    eps: float,
    blocks: _Blocks,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    area = x.shape[2]
    center, rstd = _spread(mean, blocks), _spread((var + eps).rsqrt(), blocks)
    scale = rstd if weight is None else rstd * weight
    grad, wide = upcast(grad), upcast(x)
    along_x, along_one = instance_sums(grad, wide, center)
    along_z = along_x * rstd
    mean_z = _spread(_mean(along_z, blocks), blocks) / area
    mean_one = _spread(_mean(along_one, blocks), blocks) / area
    grad_x = instance_affine(wide, center, -scale * rstd * mean_z, -scale * mean_one)
    grad_x.addcmul_(grad, scale.unsqueeze(-1))
    return grad_x.to(x.dtype), _of(weight, along_z), _of(bias, along_one)


def _row_gradients(
    grad: Tensor,
    x: Tensor,
    eps: float,
    blocks: _Blocks,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    grad_x = torch.empty_like(x)
    rstd = (var + eps).rsqrt()
    scale = rstd if weight is None else rstd * weight
    along_z, along_one = [], []
    done = 0
    for g, rows, target in _row_blocks(blocks, grad, x, grad_x):
        ghosts = slice(done, done := done + rows.shape[0])
        m, r, s = (t[ghosts].unsqueeze(1) for t in (mean, rstd, scale))
        g, centered, size = upcast(g), upcast(rows) - m, rows.shape[1]
        sum_z = (g * centered).sum(1, keepdim=True).mul_(r)
        sum_one = g.sum(1, keepdim=True)
        if size == 1:  # a value that is its own mean has no gradient, but for rounding
            s = s * 0
        write(centered, torch.addcmul, s * sum_one / -size, centered, s * r * sum_z / -size)
        write(target, torch.addcmul, centered, g, s)
        along_z.append(sum_z.squeeze(1))
        along_one.append(sum_one.squeeze(1))
    return grad_x, _of(weight, torch.cat(along_z)), _of(bias, torch.cat(along_one))


def _of(parameter: Tensor | None, sums: Tensor) -> Tensor | None:
    """The parameter's gradient, if it is there, from sums ``(*, C)``."""
    return None if parameter is None else sums.sum(0)


@torch.no_grad()
def _update_running(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float | None,
    ghosts: _Blocks,
    area: int,
) -> None:
    """What the ghost batches do to the running statistics one after the other, in closed form."""
    count = sum(number for number, _ in ghosts)
    if count == 0:
        return
    mean = mean[:count]
    # Filled where it lies: numbers copied to an accelerator would make the host wait.
    unbiased = [var.new_full((number, 1), size * area / max(size * area - 1, 1)) for number, size in ghosts]
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
    """State of the three public layers; what is theirs is the rank of the input."""

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
        """A layer with the settings of a `BatchNorm` of the same rank; `trueup.nn.convert` calls this.

        Its parameters and buffers are its own: `convert` puts the source's in their place.

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
        """Normalise by ghost batches when training, or without running statistics; else by those."""
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
    """Ghost batch normalisation of ``(N, C)`` or ``(N, C, L)``; takes the place of `torch.nn.BatchNorm1d`.

    Arguments before the star are torch's, in torch's order; the state is the same, so state dicts
    interchange. In eval mode the layer IS `BatchNorm1d`. ``num_batches_tracked`` counts ghost batches.

    Args:
        num_features: channels C.
        eps: added to the variance under the root.
        momentum: weight of one GHOST batch in the running statistics, in [0, 1]. A batch of K ghost batches
            moves them K times, so they forget K times faster, counted in batches. None: the plain average.
        affine: learn a weight and a bias per channel.
        track_running_stats: if False there are no running statistics, and eval mode takes ghost batches too.
        device, dtype: of the parameters and buffers.
        bias: learn the bias, if ``affine``.
        ghost_batch_size: samples in a ghost batch, at least 2.
        remainder: of a batch that is no multiple of it: ``"merge"``, ``"keep"`` or ``"drop_stats"``, see
            `ghost_batch_norm`.

    Raises:
        ValueError, TypeError: a setting out of range; in training, input of another rank or number of
            channels, or a ghost batch with one value per channel.

    Where activation checkpointing repeats a forward, the running statistics do not move again.
    In distributed training each process keeps its own ghost batches, as the method defines; the buffers of
    the processes differ, so broadcast or average them before evaluating.
    `SyncBatchNorm.convert_sync_batchnorm` would replace this layer too: it is a kind of batch normalisation.

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
    """Ghost batch normalisation of ``(N, C, H, W)``; takes the place of `torch.nn.BatchNorm2d`.

    Arguments, state, errors and source as `GhostBatchNorm1d`, except that a ghost batch of one sample is
    legal where its plane holds more than one value. On a CPU it is faster than `BatchNorm2d` for contiguous
    input, and slower for channels-last input.

    >>> layer = GhostBatchNorm2d(3, ghost_batch_size=8)
    >>> layer(torch.randn(32, 3, 5, 5)).shape
    torch.Size([32, 3, 5, 5])
    """

    _ranks = (4,)
    _shape = "(N, C, H, W)"
    _counterpart = nn.BatchNorm2d


class GhostBatchNorm3d(_GhostBatchNorm):
    """Ghost batch normalisation of ``(N, C, D, H, W)``; takes the place of `torch.nn.BatchNorm3d`.

    Arguments, state, errors and source as `GhostBatchNorm2d`.

    >>> layer = GhostBatchNorm3d(3, ghost_batch_size=2)
    >>> layer(torch.randn(6, 3, 2, 5, 5)).shape
    torch.Size([6, 3, 2, 5, 5])
    """

    _ranks = (5,)
    _shape = "(N, C, D, H, W)"
    _counterpart = nn.BatchNorm3d
