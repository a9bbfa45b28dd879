"""EvoNorm's fused kernels: one pass forward and at most two backward, keeping only the input.

They work on per-channel views `(N, C, L)`, on a CPU a few samples at a time. An *instance* is the L values of
one channel of one sample. Each takes the equation in composite operations, of which `vjp` makes the second
derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from trueup._numerics.chunking import sample_chunks, write
from trueup._numerics.custom_function import fold_vmap_dim, vjp
from trueup._numerics.moments import across_processes, group_moments, pool
from trueup._numerics.per_channel import instance_moments, instance_sums, is_channels_last, upcast_contiguous
from trueup._numerics.upcasting import upcast

__all__ = ["FormB", "FormS", "FusedB", "FusedS", "PlanB", "PlanS"]

FormS = Literal["S0", "S1", "S2"]
FormB = Literal["B0", "B1", "B2"]
Equation = Callable[..., Any]


# ---- S: statistics of groups of channels within a sample ----


@dataclass(frozen=True)
class PlanS:
    """The settings of an S form. The kernel's `activation` is SiLU, or None to divide only."""

    form: FormS
    groups: int
    eps: float
    activation: Callable[[Tensor], Tensor] | None


class FusedS(torch.autograd.Function):
    """Compute an S form; also return each group's center and reciprocal root, both `(N, groups)`.

    The latter are for backward and carry no gradient. Saved: x, and what has their or the parameters' size.
    """

    @staticmethod
    def forward(
        x: Tensor, equation: Equation, plan: PlanS, weight: Tensor, bias: Tensor, v: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        output = torch.empty_like(x)
        channels_last = is_channels_last(output)
        saved = []
        for chunk, out in sample_chunks(x, output):
            chunk = upcast_contiguous(chunk, channels_last)
            center, power = _group_moments(chunk, plan.groups, channels_last)
            if plan.form == "S2":
                center, power = torch.zeros_like(center), power + center.square()
            rstd = (power + plan.eps).rsqrt()
            z = chunk if plan.activation is None else _gate(chunk, v).mul_(chunk)
            write(out, torch.add, z * (_per_channel(rstd, chunk) * weight.unsqueeze(-1)), bias.unsqueeze(-1))
            saved.append((center, rstd))
        center, rstd = (torch.cat(values) for values in zip(*saved, strict=True))
        return output, center, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.equation, ctx.plan, *parameters = inputs
        _, center, rstd = output
        ctx.mark_non_differentiable(center, rstd)
        ctx.save_for_backward(x, center, rstd, *parameters)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, center, rstd, weight, bias, v = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = vjp(lambda x, *p: ctx.equation(x, ctx.plan, *p), grads[0], x, weight, bias, v)
        else:
            found = _sample_gradients(grads[0], x, ctx.plan, center, rstd, weight, v)
        grad_x, *grad_parameters = found
        return grad_x, None, None, *grad_parameters

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Fold the mapped dimension into the channels, and so into the groups."""
        x, equation, plan, *vectors = args
        x, *vectors = fold_vmap_dim(info.batch_size, (x, *vectors), (in_dims[0], *in_dims[3:]))
        plan = replace(plan, groups=info.batch_size * plan.groups)
        outputs = FusedS.apply(x, equation, plan, *vectors)  # type: ignore[no-untyped-call]
        return tuple(t.unflatten(1, (info.batch_size, -1)) for t in outputs), (1, 1, 1)


def _sample_gradients(
    grad: Tensor, x: Tensor, plan: PlanS, center: Tensor, rstd: Tensor, weight: Tensor, v: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, weight, bias and v.

    With z = x sigmoid(v x), r the reciprocal root of a group of n values, and sums over the group,

        grad_x = weight r grad dz/dx - sum(weight grad z) r^3 (x - center) / n

    where the center is the group's mean, or 0 in S2.
    """
    channels = x.shape[1] // plan.groups
    grad_x = torch.empty_like(x)
    channels_last = is_channels_last(grad_x)
    sums = []
    for g, chunk, out, c, r in sample_chunks(grad, x, grad_x, center, rstd):
        g, chunk = upcast_contiguous(g, channels_last), upcast_contiguous(chunk, channels_last)
        if plan.activation is None:
            sum_gz, sum_g = instance_sums(g, chunk)
            sum_gate, direct = sum_gz, g
        else:
            gate = _gate(chunk, v)
            slope = torch.ops.aten.sigmoid_backward(chunk, gate)  # x sigmoid'(v x)
            sum_gz, sum_g = instance_sums(g, chunk * gate)
            sum_gate = sum_gz if v is None else instance_sums(g, chunk * slope)[0]
            direct = (slope if v is None else slope.mul_(v.unsqueeze(-1))).add_(gate).mul_(g)
        through_root = (sum_gz * weight).unflatten(1, (plan.groups, -1)).sum(-1) * r.pow(3)
        through_root = through_root / -(channels * x.shape[2])
        direct = direct * (_per_channel(r, chunk) * weight.unsqueeze(-1))
        # Subtract the center first: through_root may be huge, and the mean large beside the deviations.
        deviations = chunk - _per_channel(c, chunk)
        write(out, torch.add, direct, deviations.mul_(_per_channel(through_root, chunk)))
        sums.append((sum_gz, sum_g, sum_gate))
    sum_gz, sum_g, sum_gate = (torch.cat(values) for values in zip(*sums, strict=True))
    r = rstd.repeat_interleave(channels, 1)
    grad_v = None if v is None else (sum_gate * r).sum(0) * weight
    return grad_x, (sum_gz * r).sum(0), sum_g.sum(0), grad_v


def _group_moments(x: Tensor, groups: int, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each sample's groups, `(N, groups)`, of a dense per-channel view.

    Channels last, a group is no run of memory: average its instances first.
    """
    if not channels_last:
        return group_moments(x, groups)
    mean = x.mean(2).unflatten(1, (groups, -1)).mean(2)
    deviations = x - _per_channel(mean, x)
    return mean, deviations.mul_(deviations).mean(2).unflatten(1, (groups, -1)).mean(2)


def _per_channel(t: Tensor, x: Tensor) -> Tensor:
    """Repeat each group's value for its channels: `(N, groups)` -> `(N, C, 1)`."""
    return t.repeat_interleave(x.shape[1] // t.shape[1], 1).unsqueeze(-1)


def _gate(x: Tensor, v: Tensor | None) -> Tensor:
    """Return sigmoid(v x), with v = 1 for None."""
    return torch.sigmoid(x if v is None else x * v.unsqueeze(-1))


# ---- B: the larger of a deviation over the batch and a term of the sample ----


@dataclass(frozen=True)
class PlanB:
    """The settings of a B form."""

    form: FormB
    eps: float
    process_group: dist.ProcessGroup | None


class FusedB(torch.autograd.Function):
    """Compute a B form; also return the moments behind it, which carry no gradient.

    These are mean and variance of each instance, `(N, C)`, mean and variance of each channel, `(C,)`, and the
    number of values per channel. In evaluation the channel's variance is `running_var`; its mean and the
    number are 0. Saved: x, and what has the size of these moments or of the parameters.
    """

    @staticmethod
    def forward(
        x: Tensor, equation: Equation, plan: PlanB, running_var: Tensor | None, *parameters: Any
    ) -> tuple[Tensor, ...]:
        weight, bias, v = parameters
        mean, var = instance_moments(x)
        if running_var is None:
            n = x.shape[0] * x.shape[2]
            center, channel_var, total = across_processes(*pool(mean, var, 0), n, plan.process_group)
            count = total if isinstance(total, Tensor) else center.new_full((), total)
        else:
            channel_var = running_var.clone()  # backward must not see the buffer after a later update
            center, count = torch.zeros_like(channel_var), channel_var.new_zeros(())
        left = (channel_var + plan.eps).sqrt().unsqueeze(-1)
        slope, offset = _right_side(mean, var, v, plan)
        output = torch.empty_like(x)
        channels_last = is_channels_last(output)
        for chunk, out, a, b in sample_chunks(x, output, slope, offset):
            chunk = upcast_contiguous(chunk, channels_last)
            larger = torch.maximum(chunk * a.unsqueeze(-1) + b.unsqueeze(-1), left)
            write(out, torch.add, (chunk / larger).mul_(weight.unsqueeze(-1)), bias.unsqueeze(-1))
        return output, mean, var, center, channel_var, count

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.equation, ctx.plan, running_var, *parameters = inputs
        ctx.training = running_var is None
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, *parameters, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, bias, v, *moments = ctx.saved_tensors
        if torch.is_grad_enabled():
            if ctx.plan.process_group is not None:
                raise RuntimeError(
                    "EvoNorm-B with a process_group has no second derivative: set process_group=None for that"
                )
            known = None if ctx.training else moments[3]
            found = vjp(lambda x, *p: ctx.equation(x, ctx.plan, known, *p)[0], grads[0], x, weight, bias, v)
        else:
            found = _batch_gradients(grads[0], x, ctx.plan, ctx.training, moments, weight, v)
        grad_x, *grad_parameters = found
        return grad_x, None, None, None, *grad_parameters

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Fold the mapped dimension into the channels."""
        x, equation, plan, *vectors = args
        x, *vectors = fold_vmap_dim(info.batch_size, (x, *vectors), (in_dims[0], *in_dims[3:]))
        *outputs, count = FusedB.apply(x, equation, plan, *vectors)  # type: ignore[no-untyped-call]
        dims = [1, 1, 1, 0, 0]
        unfolded = [t.unflatten(dim, (info.batch_size, -1)) for t, dim in zip(outputs, dims, strict=True)]
        return (*unfolded, count), (*dims, None)


def _right_side(mean: Tensor, var: Tensor, v: Tensor | None, plan: PlanB) -> tuple[Tensor, Tensor]:
    """Return slope and offset, both `(N, C)`, of the sample's term, which is a line in x."""
    root = ((var if plan.form == "B0" else var + mean.square()) + plan.eps).sqrt()
    if v is not None:
        return v.expand_as(root), root
    return (root if plan.form == "B1" else torch.full_like(root, -1.0)), root


def _batch_gradients(
    grad: Tensor,
    x: Tensor,
    plan: PlanB,
    training: bool,
    moments: Sequence[Tensor],
    weight: Tensor,
    v: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, weight, bias and v.

    With k = weight grad x / max(left, right)^2 and k' its part where right = slope x + root is larger, right
    gets -k', left gets k' - k, and

        grad_x = weight grad / max(left, right) - slope k' + what flows through the roots.
    """
    mean, var, center, channel_var, count = moments
    slope, root = _right_side(mean, var, v, plan)
    left = (channel_var + plan.eps).sqrt()
    grad_x = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    channels_last = is_channels_last(grad_x)
    sums = []
    for g, chunk, out, a, b in sample_chunks(grad, x, grad_x, slope, root):
        g, chunk = upcast_contiguous(g, channels_last), upcast_contiguous(chunk, channels_last)
        right = chunk * a.unsqueeze(-1) + b.unsqueeze(-1)
        larger = torch.maximum(right, left.unsqueeze(-1))
        z = chunk / larger
        sums_gz = instance_sums(g, z)
        direct = g / larger
        k = z.mul_(direct)
        sum_k = k.sum(-1)
        # 1 where right is larger, 1/2 on a tie, as in `torch.maximum`.
        k.mul_(right.sub_(left.unsqueeze(-1)).sign_().add_(1).mul_(0.5))
        sums.append((*sums_gz, sum_k, *instance_sums(k, chunk)))
        write(out, torch.mul, direct.sub_(k * a.unsqueeze(-1)), weight.unsqueeze(-1))
    sum_gz, sum_g, sum_k, right_x, right_one = (torch.cat(values) for values in zip(*sums, strict=True))

    grad_slope, grad_root, grad_left = -weight * right_x, -weight * right_one, -weight * (sum_k - right_one)
    if plan.form == "B1":
        grad_root = grad_root + grad_slope  # the root is the slope too
    # Each root adds a line in x - mean. Deviations come first, since slopes may be huge.
    linear = grad_root / (root * x.shape[2])
    constant = torch.zeros_like(mean) if plan.form == "B0" else linear * mean
    if training:
        through_left = grad_left.sum(0)
        if plan.process_group is not None:
            dist.all_reduce(through_left, group=plan.process_group)
        through_left = through_left / (left * count)
        linear, constant = linear + through_left, constant + through_left * (mean - center)
    for chunk, out, m, a, b in sample_chunks(x, grad_x, mean, linear, constant):
        out.add_((upcast(chunk) - m.unsqueeze(-1)) * a.unsqueeze(-1) + b.unsqueeze(-1))
    grad_v = None if v is None else grad_slope.sum(0)
    return grad_x.to(x.dtype), sum_gz.sum(0), sum_g.sum(0), grad_v
