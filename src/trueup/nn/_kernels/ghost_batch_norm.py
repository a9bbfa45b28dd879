"""Ghost batch normalisation in one pass forward and one backward, saving only the input.

There are two routes: contiguous input by instances (the values that a sample holds of a channel), and
channels-last input by rows (the channels of one position of one sample).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from trueup._numerics.chunking import chunk_size, write
from trueup._numerics.custom_function import fold_vmap_dim, must_use_composite_ops, vjp
from trueup._numerics.moments import pool
from trueup._numerics.per_channel import instance_affine, instance_moments, instance_sums, is_channels_last
from trueup._numerics.upcasting import upcast

__all__ = ["Ghosts", "normalize"]

# Runs of consecutive ghost batches of equal size: (how many, samples each). One run, or two with a remainder.
Ghosts = tuple[tuple[int, int], ...]
# Ghost batches `(K, g, C, L)`, weight, bias, eps -> y `(K * g, C, L)`, mean and biased variance `(K, C)`.
Equation = Callable[[Tensor, Tensor | None, Tensor | None, float], tuple[Tensor, Tensor, Tensor]]


def normalize(
    x: Tensor, equation: Equation, eps: float, ghosts: Ghosts, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise `x` `(N, C, L)`; return y, and mean and biased variance `(ghosts, C)`.

    Only y carries a gradient. The equation is the composite form for ghost batches of equal size.
    """
    if must_use_composite_ops():
        return _composite(x, equation, eps, ghosts, weight, bias)
    result = _Normalize.apply(x, equation, eps, ghosts, weight, bias)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor, Tensor], result)


def _composite(
    x: Tensor, equation: Equation, eps: float, ghosts: Ghosts, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    runs = [equation(run, weight, bias, eps) for run in _split(upcast(x), ghosts)]
    y, mean, var = (torch.cat(parts) for parts in zip(*runs, strict=True))
    return y.to(x.dtype), mean.detach(), var.detach()


class _Normalize(torch.autograd.Function):
    """As `normalize`. Saved for backward: x, and tensors of the size of the moments and parameters."""

    @staticmethod
    def forward(
        x: Tensor, equation: Equation, eps: float, ghosts: Ghosts, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        route = _normalize_rows if is_channels_last(x) else _normalize_instances
        return route(x, eps, ghosts, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, *ctx.options, weight, bias = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, mean, var, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, mean, var, *parameters = ctx.saved_tensors
        equation, eps, ghosts = ctx.options
        if torch.is_grad_enabled():
            found = vjp(lambda x, *p: _composite(x, equation, eps, ghosts, *p)[0], grads[0], x, *parameters)
        else:
            route = _row_gradients if is_channels_last(x) else _instance_gradients
            found = route(grads[0], x, eps, ghosts, mean, var, *parameters)
        grad_x, *of_parameters = found
        return grad_x, None, None, None, *of_parameters

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Fold the mapped dimension into the channels."""
        x, *options, weight, bias = args
        folded = fold_vmap_dim(info.batch_size, (x, weight, bias), (in_dims[0], *in_dims[-2:]))
        outputs = _Normalize.apply(folded[0], *options, *folded[1:])  # type: ignore[no-untyped-call]
        return tuple(t.unflatten(1, (info.batch_size, -1)) for t in outputs), (1, 1, 1)


# ---- by instances ----


def _normalize_instances(
    x: Tensor, eps: float, ghosts: Ghosts, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    pooled = [
        pool(means, variances, 1)
        for means, variances in zip(*(_split(t, ghosts) for t in instance_moments(x)), strict=True)
    ]
    mean, var = (torch.cat(values) for values in zip(*pooled, strict=True))

    center = _per_sample(mean, ghosts)
    scale = _per_sample((var + eps).rsqrt(), ghosts)
    if weight is not None:
        scale = scale * weight
    shift = torch.zeros_like(scale) if bias is None else bias.expand_as(scale)
    return instance_affine(x, center, scale, shift), mean, var


# The gradients are, with rstd = 1/sqrt(var_k + eps), z = (x - mean_k) rstd and means over ghost batch k,
#     grad_x = weight * rstd * (grad - mean(grad) - z * mean(grad * z))
#     grad_weight = sum(grad * z),  grad_bias = sum(grad)


def _instance_gradients(
    grad: Tensor,
    x: Tensor,
    eps: float,
    ghosts: Ghosts,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    area = x.shape[2]
    center, rstd = _per_sample(mean, ghosts), _per_sample((var + eps).rsqrt(), ghosts)
    scale = rstd if weight is None else rstd * weight
    grad, values = upcast(grad), upcast(x)
    sum_gx, sum_g = instance_sums(grad, values, center)
    sum_gz = sum_gx * rstd
    mean_gz, mean_g = (_ghost_mean_per_sample(t, ghosts) / area for t in (sum_gz, sum_g))
    grad_x = instance_affine(values, center, -scale * rstd * mean_gz, -scale * mean_g)
    grad_x.addcmul_(grad, scale.unsqueeze(-1))
    return grad_x.to(x.dtype), *_parameter_gradients(weight, bias, sum_gz, sum_g)


def _per_sample(t: Tensor, ghosts: Ghosts) -> Tensor:
    """Repeat the values `(ghosts, C)` for each sample of a ghost batch, `(N, C)`."""
    runs = t.split([count for count, _ in ghosts])
    return torch.cat([run.repeat_interleave(size, 0) for run, (_, size) in zip(runs, ghosts, strict=True)])


def _ghost_mean_per_sample(t: Tensor, ghosts: Ghosts) -> Tensor:
    """Replace each sample's values `(N, C)` by their mean over its ghost batch."""
    return _per_sample(torch.cat([run.mean(1) for run in _split(t, ghosts)]), ghosts)


# ---- by rows ----


def _normalize_rows(
    x: Tensor, eps: float, ghosts: Ghosts, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    output = torch.empty_like(x)
    means, variances = [], []
    for rows, normalized in _row_chunks(ghosts, x, output):
        values = upcast(rows)
        mean = values.mean(1, keepdim=True)
        centered = values - mean
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


def _row_gradients(
    grad: Tensor,
    x: Tensor,
    eps: float,
    ghosts: Ghosts,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    grad_x = torch.empty_like(x)
    rstd = (var + eps).rsqrt()
    scale = rstd if weight is None else rstd * weight
    sums_gz, sums_g = [], []
    done = 0
    for g, rows, out in _row_chunks(ghosts, grad, x, grad_x):
        chunk = slice(done, done := done + rows.shape[0])
        m, r, s = (t[chunk].unsqueeze(1) for t in (mean, rstd, scale))
        g, centered, size = upcast(g), upcast(rows) - m, rows.shape[1]
        sum_gz = (g * centered).sum(1, keepdim=True).mul_(r)
        sum_g = g.sum(1, keepdim=True)
        if size == 1:  # a value that is its own mean has no gradient, except for rounding
            s = s * 0
        write(centered, torch.addcmul, s * sum_g / -size, centered, s * r * sum_gz / -size)
        write(out, torch.addcmul, centered, g, s)
        sums_gz.append(sum_gz.squeeze(1))
        sums_g.append(sum_g.squeeze(1))
    return grad_x, *_parameter_gradients(weight, bias, torch.cat(sums_gz), torch.cat(sums_g))


def _row_chunks(ghosts: Ghosts, *views: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the rows of a few ghost batches at a time, `(count, rows each, C)`, of all tensors alike."""
    samples, features, area = views[0].shape
    chunks = []
    for count, size in ghosts:
        # Twice the chunk that fits the cache: with many small steps per chunk, fewer calls are worth more.
        most = chunk_size(views[0], size * area * features // 2, count)
        chunks += [(min(most, count - done), size * area) for done in range(0, count, most)]
    return zip(
        *(_split(t.transpose(1, 2).reshape(samples * area, features), chunks) for t in views), strict=True
    )


# ---- both ----


def _split(t: Tensor, runs: Iterable[tuple[int, int]]) -> Iterator[Tensor]:
    """Yield a view `(count, size, ...)` of each run of `count * size` items along dimension 0."""
    start = 0
    for count, size in runs:
        yield t[start : start + count * size].unflatten(0, (count, size))
        start += count * size


def _parameter_gradients(
    weight: Tensor | None, bias: Tensor | None, sum_gz: Tensor, sum_g: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    return None if weight is None else sum_gz.sum(0), None if bias is None else sum_g.sum(0)
