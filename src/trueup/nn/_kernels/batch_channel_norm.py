"""Batch-channel normalisation's two parts in one pass forward and one backward, keeping the input alone.

Both parts are affine maps of each plane (what a sample holds of a channel), and so is their composition: all
that it needs of x are the planes' moments, and all that the backward pass needs of grad are sums over planes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from trueup._numerics.custom_function import fold_vmap_dim, must_use_composite_ops, vjp
from trueup._numerics.moments import across_processes, pool
from trueup._numerics.per_channel import instance_affine, instance_moments, instance_sums
from trueup._numerics.upcasting import upcast

__all__ = ["Plan", "batch_statistics", "normalize"]


@dataclass(frozen=True)
class Plan:
    """What is not a tensor.

    ``speed`` is that of the running statistics towards the batch's before they are used: 0 takes them as they
    are, None takes the batch's.
    """

    groups: int
    eps: float
    batch_eps: float
    speed: float | None
    process_group: dist.ProcessGroup | None


def normalize(
    x: Tensor,
    plan: Plan,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    fresh: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    channel_weight: Tensor | None,
    channel_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Planes ``(N, C, L)`` -> y; the batch part's mean and variance ``(C,)``, and the number of values behind
    them. Only y carries a gradient. ``fresh``, ``(C,)``, is True where the batch's own take the place of the
    running statistics.
    """
    arguments = plan, running_mean, running_var, fresh, weight, bias, channel_weight, channel_bias
    estimates_move = plan.speed or fresh is not None
    if must_use_composite_ops() or (torch.compiler.is_compiling() and estimates_move):
        # In a compiled graph the Function's backward would see the estimates after they have moved.
        return _normalize_plainly(x, *arguments)
    result = _Normalize.apply(x, *arguments)[:4]  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor, Tensor, Tensor], result)


class _Normalize(torch.autograd.Function):
    """As `normalize`, and the moments ``(N, C)`` of the planes, if these hold more than one value.

    Saved for backward: x, and what is of the size of those moments.
    """

    @staticmethod
    def forward(
        x: Tensor,
        plan: Plan,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        fresh: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        channel_weight: Tensor | None,
        channel_bias: Tensor | None,
    ) -> tuple[Tensor, ...]:
        planes = instance_moments(x)
        mean, var, count = batch_statistics(planes, x.shape[2], running_mean, running_var, fresh, plan)
        gain, rstd, shift = _fold(planes, mean, var, weight, bias, plan)
        scale = gain * rstd
        if channel_weight is not None:
            each = _per_channel(channel_weight, scale)
            scale, shift = scale * each, shift * each
        if channel_bias is not None:
            shift = shift + _per_channel(channel_bias, scale)
        output = instance_affine(x, planes[0], scale, shift)
        return output, mean, var, count, *(planes if x.shape[2] > 1 else ())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.plan, _, _, _, *parameters = inputs
        _, mean, var, count, *planes = output
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, mean, var, count, *parameters, *planes)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        saved = ctx.saved_tensors  # once: checkpointing lets no tensor be asked for twice
        (x, mean, var, count), parameters, planes = saved[:4], saved[4:8], saved[8:]
        if torch.is_grad_enabled():
            grad_x, *found = _differentiable_gradients(grads[0], x, ctx.plan, mean, var, *parameters)
        else:
            planes = planes or instance_moments(x)
            grad_x, *found = _gradients(grads[0], x, ctx.plan, (mean, var, count), planes, *parameters)
        return grad_x, None, None, None, None, *found

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Layers side by side have as many times the groups too."""
        x, plan, *vectors = args
        x, *vectors = fold_vmap_dim(info.batch_size, (x, *vectors), (in_dims[0], *in_dims[2:]))
        plan = replace(plan, groups=info.batch_size * plan.groups)
        outputs = _Normalize.apply(x, plan, *vectors)  # type: ignore[no-untyped-call]
        dims = (1, 0, 0, None, 1, 1)[: len(outputs)]
        split = (
            t if d is None else t.unflatten(d, (info.batch_size, -1))
            for t, d in zip(outputs, dims, strict=True)
        )
        return tuple(split), dims


def _normalize_plainly(
    x: Tensor,
    plan: Plan,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    fresh: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    channel_weight: Tensor | None,
    channel_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same in operations that autograd knows."""
    wide = upcast(x)
    plane_mean = wide.mean(2)
    centered = wide - plane_mean.unsqueeze(2)
    planes = plane_mean, centered.square().mean(2)
    seen = planes if plan.speed is None else (planes[0].detach(), planes[1].detach())
    mean, var, count = batch_statistics(seen, x.shape[2], running_mean, running_var, fresh, plan)
    gain, rstd, shift = _fold(planes, mean, var, weight, bias, plan)
    y = centered * (gain * rstd).unsqueeze(2) + shift.unsqueeze(2)
    if channel_weight is not None:
        y = y * _per_channel(channel_weight, shift).unsqueeze(1)
    if channel_bias is not None:
        y = y + _per_channel(channel_bias, shift).unsqueeze(1)
    return y.to(x.dtype), mean.detach(), var.detach(), count


def batch_statistics(
    planes: tuple[Tensor, Tensor],
    area: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    fresh: Tensor | None,
    plan: Plan,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance for the batch part, and the number of values a channel in the batch.

    ``planes`` are the moments of planes of ``area`` values each.
    """
    local = planes[0].shape[0] * area
    if plan.speed is not None and running_mean is not None and running_var is not None:
        # Not the very buffers: they will move, and backward must not see that.
        old_mean, old_var = (t.to(planes[0].dtype, copy=True) for t in (running_mean, running_var))
        if plan.speed == 0 and fresh is None:
            return old_mean, old_var, old_mean.new_full((), local)
    mean, var, total = across_processes(*pool(*planes, 0), local, plan.process_group)
    count = total if isinstance(total, Tensor) else mean.new_full((), total)
    if plan.speed is not None:
        some = count > 0  # or no process has a sample
        if fresh is not None:
            fresh = fresh & some
            old_mean, old_var = torch.where(fresh, mean, old_mean), torch.where(fresh, var, old_var)
        if plan.speed == 0:
            return old_mean, old_var, count
        around_old = var + (mean - old_mean).square()
        speed = plan.speed * some.to(mean.dtype)
        mean = (1 - speed) * old_mean + speed * mean
        var = (1 - speed) * old_var + speed * around_old
    return mean, var, count


def _fold(
    planes: tuple[Tensor, Tensor],
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    plan: Plan,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both parts, but for the channel part's affine, as one affine map of each plane:

        z = gain_c * rstd_nc * (x - mean_nc(x)) + mean_nc(z)

    Returns the gain ``(C,)`` and, ``(N, C)``, rstd and the planes' means of z.
    """
    gain = (var + plan.batch_eps).rsqrt()
    if weight is not None:
        gain = gain * weight
    # The planes' moments after the batch part, from which follow those of the groups.
    u_mean, u_var = gain * (planes[0] - mean), gain.square() * planes[1]
    if bias is not None:
        u_mean = u_mean + bias
    u_mean, u_var = (t.unflatten(1, (plan.groups, -1)) for t in (u_mean, u_var))
    group_mean, group_var = pool(u_mean, u_var, 2, keepdim=True)
    rstd = (group_var + plan.eps).rsqrt()
    return gain, rstd.expand_as(u_mean).flatten(1), ((u_mean - group_mean) * rstd).flatten(1)


def _gradients(
    grad: Tensor,
    x: Tensor,
    plan: Plan,
    statistics: tuple[Tensor, Tensor, Tensor],
    planes: tuple[Tensor, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    channel_weight: Tensor | None,
    channel_bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of x and of the four parameters.

    Each part has the gradient of a normalisation: with t that of z, and h = (x - mean_c) * batch_rstd_c,

        grad_u = rstd * (t - mean_ng(t) - z * mean_ng(t * z))
        grad_x = gain * (grad_u - mean_c(grad_u) - h * mean_c(grad_u * h))        estimates: gain * grad_u

    All that is needed of grad are sums over planes; then grad_x is scale * grad + slope * x + constant, each
    ``(N, C)``.
    """
    mean, var, count = statistics
    plane_mean, plane_var = planes
    area = x.shape[2]
    gain, rstd, z_mean = _fold(planes, mean, var, weight, bias, plan)
    scale = gain * rstd
    grad, wide = upcast(grad), upcast(x)
    sum_x, sum_one = instance_sums(grad, wide, plane_mean)
    sum_z = scale * sum_x + z_mean * sum_one
    of_channel_part = sum_z.sum(0), sum_one.sum(0)
    if channel_weight is not None:
        each = _per_channel(channel_weight, scale)
        sum_x, sum_z, sum_one = sum_x * each, sum_z * each, sum_one * each

    # Through the channel part: grad_u = rstd * t + slope * (x - plane_mean) + constant, and its sums.
    mean_z, mean_one = (_group_mean(t, plan.groups) / area for t in (sum_z, sum_one))
    slope, constant = -rstd * scale * mean_z, -rstd * (mean_one + z_mean * mean_z)
    sum_x = rstd * sum_x + slope * area * plane_var
    sum_one = rstd * sum_one + constant * area

    # Through the batch part.
    batch_rstd = (var + plan.batch_eps).rsqrt()
    h_mean = (plane_mean - mean) * batch_rstd
    of_batch_part = (batch_rstd * sum_x + h_mean * sum_one).sum(0), sum_one.sum(0)
    if plan.speed is None:
        sums = torch.stack(of_batch_part)
        if plan.process_group is not None:
            dist.all_reduce(sums, group=plan.process_group)
        mean_h, mean_one = sums / count
        slope = slope - batch_rstd * mean_h
        constant = constant - h_mean * mean_h - mean_one
    slope, constant = gain * slope, gain * constant
    if channel_weight is not None:
        scale = scale * each

    grad_x = instance_affine(wide, plane_mean, slope, constant)
    grad_x.addcmul_(grad, scale.unsqueeze(2))
    # Sums are one a channel: added up over the group where there is one parameter a group.
    parameters = weight, bias, channel_weight, channel_bias
    return grad_x.to(x.dtype), *(
        None if p is None else sums.unflatten(0, (len(p), -1)).sum(1)
        for p, sums in zip(parameters, (*of_batch_part, *of_channel_part), strict=True)
    )


def _differentiable_gradients(
    grad: Tensor, x: Tensor, plan: Plan, mean: Tensor, var: Tensor, *parameters: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The same, to be differentiated again."""
    if plan.speed is not None:
        plan = replace(plan, speed=0.0)  # by the estimates that were used
    elif plan.process_group is not None:
        raise RuntimeError(
            "batch-channel normalisation by batch statistics of several processes has no second "
            "derivative: take process_group=None or estimate=True"
        )
    return vjp(lambda x, *p: _normalize_plainly(x, plan, mean, var, None, *p)[0], grad, x, *parameters)


def _group_mean(t: Tensor, groups: int) -> Tensor:
    """``(N, C)``: each channel gets the mean over its group's channels."""
    t = t.unflatten(1, (groups, -1))
    return t.mean(2, keepdim=True).expand_as(t).flatten(1)


def _per_channel(parameter: Tensor, like: Tensor) -> Tensor:
    """One value a group -> one a channel, for ``(N, C)``."""
    return parameter.repeat_interleave(like.shape[1] // len(parameter))
