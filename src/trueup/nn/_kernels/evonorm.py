"""EvoNorm's kernels: each layer in one pass forward and at most two backward, keeping the input alone.

All work on planes `(N, C, L)`, where a plane is what a sample holds of a channel, a few samples at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor

from trueup._numerics.chunking import sample_chunks, write
from trueup._numerics.custom_function import fold_vmap_dim, must_use_composite_ops, vjp
from trueup._numerics.moments import across_processes, group_moments, pool
from trueup._numerics.per_channel import instance_moments, instance_sums, is_channels_last, upcast_contiguous
from trueup._numerics.upcasting import upcast

__all__ = ["BatchPlan", "BatchVariant", "SamplePlan", "batch_norm", "divide", "sample_norm"]

BatchVariant = Literal["B0", "B1", "B2"]


# ---- S: statistics of groups of channels within a sample ----


@dataclass(frozen=True)
class SamplePlan:
    """What is not a tensor.

    ``centered``: divide by the groups' deviations rather than by the roots of their mean squares.
    ``activate``: multiply x by ``sigmoid(v * x)``, v being 1 if None.
    """

    groups: int
    eps: float
    centered: bool
    activate: bool


def sample_norm(x: Tensor, plan: SamplePlan, weight: Tensor, bias: Tensor, v: Tensor | None) -> Tensor:
    """Planes ``(N, C, L)``, activated, divided, scaled and shifted."""
    if must_use_composite_ops():
        return _sample_plainly(x, plan, weight, bias, v)
    return cast(Tensor, _SampleNorm.apply(x, plan, weight, bias, v)[0])  # type: ignore[no-untyped-call]


class _SampleNorm(torch.autograd.Function):
    """As `sample_norm`, and the groups' mean and variance ``(N, groups)``.

    The latter are for backward and carry no gradient. Saved: x, and what is of their or the parameters' size.
    """

    @staticmethod
    def forward(
        x: Tensor, plan: SamplePlan, weight: Tensor, bias: Tensor, v: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        output = torch.empty_like(x)
        last = is_channels_last(output)
        moments = []
        for part, out in sample_chunks(x, output):
            part = upcast_contiguous(part, last)
            mean, var = _group_moments(part, plan.groups, last)
            scale = _spread((_power(mean, var, plan) + plan.eps).rsqrt(), part) * _column(weight)
            z = _gate(part, v).mul_(part) if plan.activate else part
            write(out, torch.add, z * scale, _column(bias))
            moments.append((mean, var))
        mean, var = (torch.cat(values) for values in zip(*moments, strict=True))
        return output, mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.plan, *parameters = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, mean, var, *parameters)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, mean, var, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = vjp(lambda x, *p: _sample_plainly(x, ctx.plan, *p), grads[0], x, *parameters)
        else:
            found = _sample_gradients(grads[0], x, ctx.plan, mean, var, *parameters)
        grad_x, *of_parameters = found
        return grad_x, None, *of_parameters

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Layers side by side have as many times the groups too."""
        x, plan, *vectors = args
        x, *vectors = fold_vmap_dim(info.batch_size, (x, *vectors), (in_dims[0], *in_dims[2:]))
        plan = replace(plan, groups=info.batch_size * plan.groups)
        outputs = _SampleNorm.apply(x, plan, *vectors)  # type: ignore[no-untyped-call]
        return tuple(t.unflatten(1, (info.batch_size, -1)) for t in outputs), (1, 1, 1)


def _sample_gradients(
    grad: Tensor,
    x: Tensor,
    plan: SamplePlan,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """With z = x sigmoid(v x), r the reciprocal root of a group of n values, and sums over the group,

    grad_x = weight r grad dz/dx - sum(weight grad z) r^3 (x - mean) / n        (S2: x alone)
    """
    rstd = (_power(mean, var, plan) + plan.eps).rsqrt()
    n = x.shape[1] // plan.groups * x.shape[2]
    center = mean if plan.centered else torch.zeros_like(mean)
    grad_x = torch.empty_like(x)
    last = is_channels_last(grad_x)
    sums = []
    for g, part, out, r, m in sample_chunks(grad, x, grad_x, rstd, center):
        g, part = upcast_contiguous(g, last), upcast_contiguous(part, last)
        if plan.activate:
            gate = _gate(part, v)
            bend = torch.ops.aten.sigmoid_backward(part, gate)  # x sigmoid'(v x)
            grad_z = instance_sums(g, part * gate)
            grad_gate = grad_z if v is None else instance_sums(g, part * bend)
            direct = (bend if v is None else bend.mul_(_column(v))).add_(gate).mul_(g)
        else:
            grad_z = grad_gate = instance_sums(g, part)
            direct = g
        through_root = (grad_z[0] * weight).unflatten(1, (plan.groups, -1)).sum(-1) * r.pow(3) / -n
        direct = direct * (_spread(r, part) * _column(weight))
        # The center is taken off first: through_root may be huge, and the mean large beside the deviations.
        write(out, torch.add, direct, (part - _spread(m, part)).mul_(_spread(through_root, part)))
        sums.append((*grad_z, grad_gate[0]))
    along_z, along_one, along_gate = (torch.cat(values) for values in zip(*sums, strict=True))
    r = rstd.repeat_interleave(x.shape[1] // plan.groups, 1)
    return (
        grad_x,
        (along_z * r).sum(0),
        along_one.sum(0),
        None if v is None else (along_gate * r).sum(0) * weight,
    )


def _sample_plainly(x: Tensor, plan: SamplePlan, weight: Tensor, bias: Tensor, v: Tensor | None) -> Tensor:
    """The same in operations that autograd knows."""

    def activation(wide: Tensor) -> Tensor:
        return wide * _gate(wide, v) if plan.activate else wide

    return divide(x, plan, activation, weight, bias)


def divide(
    x: Tensor, plan: SamplePlan, activation: Callable[[Tensor], Tensor], weight: Tensor, bias: Tensor
) -> Tensor:
    """Any activation of x, divided, scaled and shifted in operations that autograd knows."""
    wide = upcast(x)
    values = wide.unflatten(1, (plan.groups, -1)).flatten(2)
    power = values.var(2, correction=0) if plan.centered else values.square().mean(2)
    z = activation(wide) * _spread((power + plan.eps).rsqrt(), x)
    return (z * _column(weight) + _column(bias)).to(x.dtype)


# ---- B: the larger of a deviation over the batch and a term of the sample ----


@dataclass(frozen=True)
class BatchPlan:
    """What is not a tensor."""

    eps: float
    variant: BatchVariant
    process_group: dist.ProcessGroup | None


def batch_norm(
    x: Tensor, plan: BatchPlan, known: Tensor | None, weight: Tensor, bias: Tensor, v: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Planes ``(N, C, L)`` -> y; the channels' variance ``(C,)``, which is ``known`` if given; and the number
    of values behind it. Only y carries a gradient.
    """
    if must_use_composite_ops():
        output, *_, var, count = _batch_plainly(x, plan, known, weight, bias, v)
        var = var.detach()
    else:
        output, *_, var, count = _BatchNorm.apply(x, plan, known, weight, bias, v)  # type: ignore[no-untyped-call]
    return output, var, count


class _BatchNorm(torch.autograd.Function):
    """Planes -> y; mean and variance of the planes, ``(N, C)``, and of the channels; the number of values.

    Saved: x, and what is of the size of these moments or of the parameters.
    """

    @staticmethod
    def forward(
        x: Tensor, plan: BatchPlan, known: Tensor | None, weight: Tensor, bias: Tensor, v: Tensor | None
    ) -> tuple[Tensor, ...]:
        mean, var = instance_moments(x)
        channels = _channels(mean, var, x.shape[2], known, plan)
        slope, offset = _line(mean, var, v, plan)
        left = (channels[1] + plan.eps).sqrt()
        output = torch.empty_like(x)
        last = is_channels_last(output)
        for part, out, a, b in sample_chunks(x, output, slope, offset):
            part = upcast_contiguous(part, last)
            larger = torch.maximum(_along(part, a, b), _column(left))
            write(out, torch.add, (part / larger).mul_(_column(weight)), _column(bias))
        return output, mean, var, *channels

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.plan, known, *parameters = inputs
        # `known` is not kept: its copy among the outputs cannot be changed by a later training forward.
        ctx.mark_non_differentiable(*output[1:])
        ctx.training = known is None
        ctx.save_for_backward(x, *parameters, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, bias, v, *moments = ctx.saved_tensors
        parameters = weight, bias, v
        known = None if ctx.training else moments[3]
        if torch.is_grad_enabled():
            found = vjp(lambda x, *p: _batch_plainly(x, ctx.plan, known, *p)[0], grads[0], x, *parameters)
        else:
            found = _batch_gradients(grads[0], x, ctx.plan, known, moments, *parameters)
        grad_x, *of_parameters = found
        return grad_x, None, None, *of_parameters

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        x, plan, *vectors = args
        x, *vectors = fold_vmap_dim(info.batch_size, (x, *vectors), (in_dims[0], *in_dims[2:]))
        *outputs, count = _BatchNorm.apply(x, plan, *vectors)  # type: ignore[no-untyped-call]
        dims = [1, 1, 1, 0, 0]
        unfolded = [t.unflatten(dim, (info.batch_size, -1)) for t, dim in zip(outputs, dims, strict=True)]
        return (*unfolded, count), (*dims, None)


def _channels(
    mean: Tensor, var: Tensor, length: int, known: Tensor | None, plan: BatchPlan
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and count of each channel over batch and processes; or the variance that is known."""
    if known is not None:
        whole = known.clone()
        return torch.zeros_like(whole), whole, whole.new_zeros(())
    count = mean.shape[0] * length
    center, whole, total = across_processes(*pool(mean, var, 0), count, plan.process_group)
    return center, whole, total if isinstance(total, Tensor) else center.new_full((), total)


def _line(mean: Tensor, var: Tensor, v: Tensor | None, plan: BatchPlan) -> tuple[Tensor, Tensor]:
    """Slope and offset ``(N, C)`` of the sample's term, which is a line in x."""
    root = ((var if plan.variant == "B0" else var + mean.square()) + plan.eps).sqrt()
    if v is not None:
        return v.expand_as(root), root
    return (root if plan.variant == "B1" else torch.full_like(root, -1.0)), root


def _batch_gradients(
    grad: Tensor,
    x: Tensor,
    plan: BatchPlan,
    known: Tensor | None,
    moments: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """With k = weight grad x / max(left, right)^2 and k' its part where right = slope x + offset is larger,
    right gets -k', left gets k' - k, and

    grad_x = weight grad / max(left, right) - slope k' + what flows through the roots.
    """
    mean, var, center, whole, count = moments
    slope, root = _line(mean, var, v, plan)
    left = (whole + plan.eps).sqrt()
    grad_x = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    last = is_channels_last(grad_x)
    sums = []
    for g, part, out, a, b in sample_chunks(grad, x, grad_x, slope, root):
        g, part = upcast_contiguous(g, last), upcast_contiguous(part, last)
        right = _along(part, a, b)
        larger = torch.maximum(right, _column(left))
        z = part / larger
        grad_z = instance_sums(g, z)
        direct = g / larger
        k = z.mul_(direct)
        total = k.sum(-1)
        # 1 where right is larger, 1/2 on a tie, as `torch.maximum` has it.
        k.mul_(right.sub_(_column(left)).sign_().add_(1).mul_(0.5))
        sums.append((*grad_z, total, *instance_sums(k, part)))
        write(out, torch.mul, direct.sub_(k * a.unsqueeze(-1)), _column(weight))
    along_z, along_one, total, right_x, right_one = (torch.cat(values) for values in zip(*sums, strict=True))

    grad_slope, grad_root, grad_left = -weight * right_x, -weight * right_one, -weight * (total - right_one)
    if plan.variant == "B1":
        grad_root = grad_root + grad_slope  # the root is the slope too
    # Through the roots, each a line in x - mean: deviations first, since slopes may be huge.
    linear = grad_root / (root * x.shape[2])
    constant = torch.zeros_like(mean) if plan.variant == "B0" else linear * mean
    if known is None:
        through_left = grad_left.sum(0)
        if plan.process_group is not None:
            dist.all_reduce(through_left, group=plan.process_group)
        through_left = through_left / (left * count)
        linear, constant = linear + through_left, constant + through_left * (mean - center)
    for part, out, m, a, b in sample_chunks(x, grad_x, mean, linear, constant):
        out.add_(_along(upcast(part) - m.unsqueeze(-1), a, b))
    return (
        grad_x.to(x.dtype),
        along_z.sum(0),
        along_one.sum(0),
        None if v is None else grad_slope.sum(0),
    )


def _batch_plainly(
    x: Tensor, plan: BatchPlan, known: Tensor | None, weight: Tensor, bias: Tensor, v: Tensor | None
) -> tuple[Tensor, ...]:
    """The same in operations that autograd knows."""
    if plan.process_group is not None:
        raise RuntimeError(
            "EvoNorm-B with a process_group has no second derivative, nor can it be exported: "
            "set process_group=None for that"
        )
    wide = upcast(x)
    mean, var = wide.mean(2), wide.var(2, correction=0)
    channels = _channels(mean, var, x.shape[2], known, plan)
    right = _along(wide, *_line(mean, var, v, plan))
    larger = torch.maximum(right, _column((channels[1] + plan.eps).sqrt()))
    y = wide / larger * _column(weight) + _column(bias)
    return y.to(x.dtype), mean, var, *channels


# ---- what both are made of ----


def _group_moments(x: Tensor, groups: int, last: bool) -> tuple[Tensor, Tensor]:
    """`group_moments` of dense planes. Channels last, a group is no run of memory: sum its planes first."""
    if not last:
        return group_moments(x, groups)
    mean = x.mean(2).unflatten(1, (groups, -1)).mean(2)
    centered = x - _spread(mean, x)
    return mean, centered.mul_(centered).mean(2).unflatten(1, (groups, -1)).mean(2)


def _column(t: Tensor) -> Tensor:
    """``(C,)`` -> ``(C, 1)``, to stand beside planes."""
    return t.unsqueeze(-1)


def _spread(t: Tensor, x: Tensor) -> Tensor:
    """``(N, groups)`` -> ``(N, C, 1)``: each channel gets its group's value."""
    return t.repeat_interleave(x.shape[1] // t.shape[1], 1).unsqueeze(-1)


def _power(mean: Tensor, var: Tensor, plan: SamplePlan) -> Tensor:
    """The variance, or the mean square."""
    return var if plan.centered else var + mean.square()


def _gate(x: Tensor, v: Tensor | None) -> Tensor:
    return torch.sigmoid(x if v is None else x * _column(v))


def _along(x: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """A line in x for each plane."""
    return x * slope.unsqueeze(-1) + offset.unsqueeze(-1)
