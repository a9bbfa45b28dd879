"""Batch-channel normalisation's two parts in one pass forward and one backward, saving only the input.

Each part is an affine map of every instance (the values that a sample holds of a channel), and so is their
composition. It follows from the instances' moments, and the gradients follow from sums over instances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from trueup._numerics.custom_function import fold_vmap_dim, must_use_composite_ops, vjp
from trueup._numerics.moments import pool
from trueup._numerics.per_channel import instance_affine, instance_moments, instance_sums
from trueup._numerics.upcasting import upcast
from trueup.nn._estimated_batch_norm import batch_statistics, estimated_statistics

__all__ = ["Plan", "normalize"]


@dataclass(frozen=True)
class Plan:
    """The arguments that are not tensors.

    `equation` is the composite form of both parts, given the batch part's statistics. These are the
    batch's if `moving_speed` is None, else the running ones after they have moved at that speed.
    """

    equation: Callable[..., Tensor]
    num_groups: int
    eps: float
    batch_eps: float
    moving_speed: float | None
    process_group: dist.ProcessGroup | None


def normalize(
    x: Tensor, plan: Plan, running: Sequence[Tensor | None], parameters: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, the batch part's mean and variance `(C,)`, and the number of values behind them.

    Only y carries a gradient.

    Args:
        x: per-channel view `(N, C, L)`.
        plan: the other arguments.
        running: mean, variance, and, `(C,)`, whether the batch's own replace them.
        parameters: weight and bias of the batch part, then of the channel part.
    """
    if must_use_composite_ops():
        return _composite(x, plan, *running, *parameters)
    result = _Normalize.apply(x, plan, *running, *parameters)[:4]  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor, Tensor, Tensor], result)


def _composite(
    x: Tensor,
    plan: Plan,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    first: Tensor | None,
    *parameters: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do the same in operations that autograd can differentiate."""
    values = upcast(x)
    instance_mean = values.mean(2)
    moments = instance_mean, (values - instance_mean.unsqueeze(2)).square().mean(2)
    if plan.moving_speed is not None:
        moments = moments[0].detach(), moments[1].detach()
    mean, var, count = _statistics(moments, x.shape[2], running_mean, running_var, first, plan)
    y = plan.equation(values, mean, var, parameters, plan.num_groups, plan.eps, plan.batch_eps)
    return y.to(x.dtype), mean.detach(), var.detach(), count


class _Normalize(torch.autograd.Function):
    """As `normalize`; returns the instances' moments `(N, C)` too, if these hold more than one value.

    Saved for backward: x, and tensors of the size of the moments and of the parameters.
    """

    @staticmethod
    def forward(
        x: Tensor,
        plan: Plan,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        first: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        channel_weight: Tensor | None,
        channel_bias: Tensor | None,
    ) -> tuple[Tensor, ...]:
        moments = instance_moments(x)
        mean, var, count = _statistics(moments, x.shape[2], running_mean, running_var, first, plan)
        gain, rstd, shift = _compose_parts(moments, mean, var, weight, bias, plan)
        scale = gain * rstd
        if channel_weight is not None:
            channel_weight = _per_channel(channel_weight, scale)
            scale, shift = scale * channel_weight, shift * channel_weight
        if channel_bias is not None:
            shift = shift + _per_channel(channel_bias, scale)
        output = instance_affine(x, moments[0], scale, shift)
        return output, mean, var, count, *(moments if x.shape[2] > 1 else ())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.plan, _, _, _, *parameters = inputs
        _, mean, var, count, *moments = output
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, mean, var, count, *parameters, *moments)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        saved = ctx.saved_tensors  # read once: under checkpointing a second read fails
        (x, mean, var, count), parameters, moments = saved[:4], saved[4:8], saved[8:]
        if torch.is_grad_enabled():
            plan = _plan_of_second_derivative(ctx.plan)
            found = vjp(lambda x, *p: _composite(x, plan, mean, var, None, *p)[0], grads[0], x, *parameters)
        else:
            moments = moments or instance_moments(x)
            found = _gradients(grads[0], x, ctx.plan, (mean, var, count), moments, *parameters)
        grad_x, *of_parameters = found
        return grad_x, None, None, None, None, *of_parameters

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Fold the mapped dimension into the channels and groups."""
        x, plan, *vectors = args
        x, *vectors = fold_vmap_dim(info.batch_size, (x, *vectors), (in_dims[0], *in_dims[2:]))
        plan = replace(plan, num_groups=info.batch_size * plan.num_groups)
        outputs = _Normalize.apply(x, plan, *vectors)  # type: ignore[no-untyped-call]
        dims = (1, 0, 0, None, 1, 1)[: len(outputs)]
        split = (
            t if d is None else t.unflatten(d, (info.batch_size, -1))
            for t, d in zip(outputs, dims, strict=True)
        )
        return tuple(split), dims


def _statistics(
    moments: tuple[Tensor, Tensor],
    area: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    first: Tensor | None,
    plan: Plan,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the batch part's mean and variance, and the batch's number of values per channel."""
    if plan.moving_speed is None or running_mean is None or running_var is None:
        return batch_statistics(moments, area, plan.process_group)
    return estimated_statistics(
        moments, area, running_mean, running_var, plan.moving_speed, first, plan.process_group
    )


def _plan_of_second_derivative(plan: Plan) -> Plan:
    if plan.moving_speed is not None:
        return replace(plan, moving_speed=0.0)  # normalise by the estimates that were used
    if plan.process_group is not None:
        raise RuntimeError(
            "batch-channel normalisation by batch statistics of several processes has no second "
            "derivative: pass process_group=None or estimate=True"
        )
    return plan


def _compose_parts(
    moments: tuple[Tensor, Tensor],
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    plan: Plan,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return both parts, without the channel part's weight and bias, as one affine map per instance:

        z = gain_c * rstd_nc * (x - mean_nc(x)) + mean_nc(z)

    The result is the gain `(C,)` and, `(N, C)`, rstd and the instances' means of z.
    """
    gain = (var + plan.batch_eps).rsqrt()
    if weight is not None:
        gain = gain * weight
    # The instances' moments after the batch part give those of the groups.
    u_mean, u_var = gain * (moments[0] - mean), gain.square() * moments[1]
    if bias is not None:
        u_mean = u_mean + bias
    u_mean, u_var = (t.unflatten(1, (plan.num_groups, -1)) for t in (u_mean, u_var))
    group_mean, group_var = pool(u_mean, u_var, 2, keepdim=True)
    rstd = (group_var + plan.eps).rsqrt()
    return gain, rstd.expand_as(u_mean).flatten(1), ((u_mean - group_mean) * rstd).flatten(1)


def _gradients(
    grad: Tensor,
    x: Tensor,
    plan: Plan,
    statistics: tuple[Tensor, Tensor, Tensor],
    moments: tuple[Tensor, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    channel_weight: Tensor | None,
    channel_bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x and of the four parameters.

    Each part has the gradient of a norm. With h = (x - mean_c) * batch_rstd_c and t the gradient of z:

        grad_u = rstd * (t - mean_ng(t) - z * mean_ng(t * z))
        grad_x = gain * (grad_u - mean_c(grad_u) - h * mean_c(grad_u * h))        estimates: gain * grad_u

    This needs only sums of grad over instances. Then, with coefficients `(N, C)`,

        grad_x = scale * grad + slope * (x - mean_nc(x)) + constant
    """
    mean, var, count = statistics
    instance_mean, instance_var = moments
    area = x.shape[2]
    gain, rstd, z_mean = _compose_parts(moments, mean, var, weight, bias, plan)
    scale = gain * rstd
    grad, values = upcast(grad), upcast(x)
    sum_gx, sum_g = instance_sums(grad, values, instance_mean)
    sum_gz = scale * sum_gx + z_mean * sum_g
    channel_part_grads = sum_gz.sum(0), sum_g.sum(0)
    if channel_weight is not None:
        channel_weight_c = _per_channel(channel_weight, scale)
        sum_gx, sum_gz, sum_g = (t * channel_weight_c for t in (sum_gx, sum_gz, sum_g))

    # Channel part: grad_u = rstd * t + slope * (x - instance_mean) + constant, and its sums.
    mean_gz, mean_g = (_group_mean(t, plan.num_groups) / area for t in (sum_gz, sum_g))
    slope, constant = -rstd * scale * mean_gz, -rstd * (mean_g + z_mean * mean_gz)
    sum_gx = rstd * sum_gx + slope * area * instance_var
    sum_g = rstd * sum_g + constant * area

    # Batch part.
    batch_rstd = (var + plan.batch_eps).rsqrt()
    h_mean = (instance_mean - mean) * batch_rstd
    batch_part_grads = (batch_rstd * sum_gx + h_mean * sum_g).sum(0), sum_g.sum(0)
    if plan.moving_speed is None:
        sums = torch.stack(batch_part_grads)
        if plan.process_group is not None:
            dist.all_reduce(sums, group=plan.process_group)
        mean_gh, mean_g = sums / count
        slope = slope - batch_rstd * mean_gh
        constant = constant - h_mean * mean_gh - mean_g
    slope, constant = gain * slope, gain * constant
    if channel_weight is not None:
        scale = scale * channel_weight_c

    grad_x = instance_affine(values, instance_mean, slope, constant)
    grad_x.addcmul_(grad, scale.unsqueeze(2))
    # One gradient per channel: summed over the group where there is one parameter per group.
    parameters = weight, bias, channel_weight, channel_bias
    return grad_x.to(x.dtype), *(
        None if p is None else sums.unflatten(0, (len(p), -1)).sum(1)
        for p, sums in zip(parameters, (*batch_part_grads, *channel_part_grads), strict=True)
    )


def _group_mean(t: Tensor, num_groups: int) -> Tensor:
    """Replace each channel of `(N, C)` by the mean over its group."""
    t = t.unflatten(1, (num_groups, -1))
    return t.mean(2, keepdim=True).expand_as(t).flatten(1)


def _per_channel(parameter: Tensor, like: Tensor) -> Tensor:
    """Repeat a parameter per group for each channel of `(N, C)`."""
    return parameter.repeat_interleave(like.shape[1] // len(parameter))
