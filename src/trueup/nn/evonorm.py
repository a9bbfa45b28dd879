"""EvoNorm: normalisation and activation in one layer, found by evolution.

Problem: normalisation and activation are designed apart though they always stand together, and batch
normalisation fails on small batches. Idea: one expression for both, searched for over basic operations. None
of those found subtracts a mean; what divides is, with population variances, eps inside every root and s, q
for the root of the variance and of the mean square,

    B0: y = x / max(s_channel, v x + s_instance) * weight + bias        v, weight, bias: one a channel
    B1: y = x / max(s_channel, (x + 1) q_instance) * weight + bias
    B2: y = x / max(s_channel, q_instance - x) * weight + bias
    S0: y = x sigmoid(v x) / s_group * weight + bias                     S1: v = 1    S2: v = 1, q_group

"channel" is over the batch (evaluation takes a running variance), the others within a sample. Liu, Brock,
Simonyan, Le: Evolving Normalization-Activation Layers, NeurIPS 2020, arXiv 2004.02967. The running variance
is unbiased, as in `torch.nn.BatchNorm2d` and timm; the official TensorFlow code keeps the biased one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trueup.nn.moments import across_processes, group_moments, pieces, plane_sums, pool, widen
from trueup.nn.recomputation import recomputing

__all__ = [
    "EvoNorm2dB0",
    "EvoNorm2dB1",
    "EvoNorm2dB2",
    "EvoNorm2dS0",
    "EvoNorm2dS0a",
    "EvoNorm2dS1",
    "EvoNorm2dS1a",
    "EvoNorm2dS2",
    "EvoNorm2dS2a",
    "evonorm_b",
    "evonorm_s",
]

BatchVariant = Literal["B0", "B1", "B2"]
SampleVariant = Literal["S0", "S1", "S2"]


# ---- S: statistics of groups of channels within a sample ----


def evonorm_s(
    input: Float[Tensor, "batch channels *spatial"],
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    v: Float[Tensor, " channels"] | None = None,
    groups: int = 32,
    eps: float = 1e-5,
    *,
    variant: SampleVariant = "S0",
    activation: Callable[[Tensor], Tensor] | None = F.silu,
) -> Float[Tensor, "batch channels *spatial"]:
    """Activate, and divide by the deviation (S2: the root mean square) of each group of channels of x.

    Args:
        input: floating point, ``(N, C, L)``, ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        weight, bias: ``(C,)``, applied last.
        v: ``(C,)``, needed by S0 with an activation and taken by nothing else.
        groups: divides C; a group is of C / groups neighbouring channels.
        eps: added under the root, > 0.
        variant: ``"S0"`` activates by ``x * sigmoid(v * x)``, ``"S1"`` and ``"S2"`` by ``activation``.
        activation: elementwise and not in place; None only divides. With SiLU the input alone is kept for
            backward; any other is left to autograd, which keeps more.

    Statistics never leave a sample: evaluation is training, a batch of one is legal, and processes have
    nothing to tell each other. They are taken in float32 or better whatever the input's dtype.

    Raises:
        TypeError: the input is not floating point.
        ValueError: a shape or option that does not fit.

    Source: the equations above; the paper's table of layers, appendix.

    >>> x, one = torch.tensor([[[1.0, 3.0], [10.0, 30.0]]]), torch.ones(2)
    >>> evonorm_s(x, one, 0 * one, groups=2, variant="S1", activation=None)  # the deviations are 1 and 10
    tensor([[[1.0000, 3.0000],
             [1.0000, 3.0000]]])
    """
    _check(input, {"weight": weight, "bias": bias, "v": v}, eps)
    _check_groups("evonorm_s", input.shape[1], groups)
    if variant not in ("S0", "S1", "S2"):
        raise ValueError(f"variant must be 'S0', 'S1' or 'S2'; got {variant!r}")
    _check_v(v, needed=variant == "S0" and activation is not None, by="S0 with an activation", got=variant)
    if input.numel() == 0:
        return _empty(input, weight, bias, v)

    planes = input.flatten(2)
    options = groups, eps, variant != "S2"
    if activation is None or activation is F.silu:
        output = _sample_norm(planes, weight, bias, v, *options, activation is not None)
    else:
        output = _divide_plainly(activation(input).reshape(planes.shape), planes, weight, bias, *options)
    return output.reshape(input.shape)


def _sample_norm(x: Tensor, *args: Any) -> Tensor:
    if torch.compiler.is_exporting():
        # An exported graph holds plain operations, not this Function: they must carry the gradient.
        return _sample_plainly(x, *args)
    return cast(Tensor, _SampleNorm.apply(x, *args)[0])  # type: ignore[no-untyped-call]


class _SampleNorm(torch.autograd.Function):
    """Planes ``(N, C, L)`` of any strides -> y, and the groups' mean and variance ``(N, groups)``.

    ``activate`` multiplies x by ``sigmoid(v * x)``, v being 1 if None. The moments are for backward and carry
    no gradient. Saved: x, and what is of the size of the moments or of the parameters.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        v: Tensor | None,
        groups: int,
        eps: float,
        centered: bool,
        activate: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        output = torch.empty_like(x)
        moments = []
        for part, out in _strips(x, output):
            part = widen(part).contiguous()
            mean, var = group_moments(part, groups)
            scale = _spread(_power(mean, var, centered).add(eps).rsqrt(), part) * _column(weight, part)
            z = _gate(part, v).mul_(part) if activate else part
            torch.add(z * scale, _column(bias, part), out=out)
            moments.append((mean, var))
        mean, var = (torch.cat(values) for values in zip(*moments, strict=True))
        return output, mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, v, *ctx.options = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, weight, bias, v, mean, var)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, bias, v, mean, var = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = _pull(_sample_plainly, grads[0], x, weight, bias, v, *ctx.options)
        else:
            found = _sample_gradients(grads[0], x, weight, bias, v, mean, var, *ctx.options)
        return *found, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Layers side by side are one, with as many times the channels and the groups."""
        x, weight, bias, v, groups, *options = args
        folded = _side_by_side(info.batch_size, (x, weight, bias, v), in_dims)
        outputs = _SampleNorm.apply(*folded, info.batch_size * groups, *options)  # type: ignore[no-untyped-call]
        return tuple(t.unflatten(1, (info.batch_size, -1)) for t in outputs), (1, 1, 1)


def _sample_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None,
    mean: Tensor,
    var: Tensor,
    groups: int,
    eps: float,
    centered: bool,
    activate: bool,
) -> tuple[Tensor | None, ...]:
    """With z = x sigmoid(v x), r the reciprocal root of a group of n values, and sums over the group,

    grad_x = weight r grad dz/dx - sum(weight grad z) r^3 (x - mean) / n        (S2: x alone)
    """
    rstd = (_power(mean, var, centered) + eps).rsqrt()
    n = x.shape[1] // groups * x.shape[2]
    center = mean if centered else torch.zeros_like(mean)
    grad_x = torch.empty_like(x)
    sums = []
    for g, part, out, r, m in _strips(grad, x, grad_x, rstd, center):
        g, part = widen(g).contiguous(), widen(part).contiguous()
        if activate:
            gate = _gate(part, v)
            bend = torch.ops.aten.sigmoid_backward(part, gate)  # x sigmoid'(v x)
            grad_z, grad_gate = _dots(g, part * gate), _dots(g, part * bend)
            direct = (bend if v is None else bend.mul_(_column(v, part))).add_(gate).mul_(g)
        else:
            grad_z = grad_gate = _dots(g, part)
            direct = g
        through_root = (grad_z[0] * weight).unflatten(1, (groups, -1)).sum(-1) * r.pow(3) / -n
        direct = direct * (_spread(r, part) * _column(weight, part))
        # The center is taken off first: through_root may be huge, and the mean large beside the deviations.
        torch.add(direct, (part - _spread(m, part)).mul_(_spread(through_root, part)), out=out)
        sums.append((*grad_z, grad_gate[0]))
    along_z, along_one, along_gate = (torch.cat(values) for values in zip(*sums, strict=True))
    r = rstd.repeat_interleave(x.shape[1] // groups, 1)
    return (
        grad_x,
        (along_z * r).sum(0).to(weight.dtype),
        along_one.sum(0).to(bias.dtype),
        None if v is None else ((along_gate * r).sum(0) * weight).to(v.dtype),
    )


def _sample_plainly(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None,
    groups: int,
    eps: float,
    centered: bool,
    activate: bool,
) -> Tensor:
    """The same in operations that autograd knows."""
    wide = widen(x)
    z = wide * _gate(wide, v) if activate else wide
    return _divide_plainly(z, x, weight, bias, groups, eps, centered)


def _divide_plainly(
    z: Tensor, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, centered: bool
) -> Tensor:
    values = widen(x).unflatten(1, (groups, -1)).flatten(2)
    power = values.var(2, correction=0) if centered else values.square().mean(2)
    y = widen(z) * _spread((power + eps).rsqrt(), x) * _column(weight, values) + _column(bias, values)
    return y.to(x.dtype)


# ---- B: the larger of a deviation over the batch and a term of the sample ----


def evonorm_b(
    input: Float[Tensor, "batch channels *spatial"],
    running_var: Float[Tensor, " channels"] | None,
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    v: Float[Tensor, " channels"] | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    variant: BatchVariant = "B0",
    process_group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "batch channels *spatial"]:
    """Divide by the larger of each channel's deviation over the batch and a term of the sample itself.

    Args:
        input: floating point, ``(N, C, L)``, ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        running_var: ``(C,)``. Training moves it, in place, by the batch's unbiased variance, once a call, but
            not where activation checkpointing repeats a forward. Evaluation takes it for the variance of the
            batch. None: nothing is kept, and ``training`` must be True.
        weight, bias: ``(C,)``, applied last.
        v: ``(C,)``, needed by B0 and taken by nothing else.
        training: normalise by the batch rather than by ``running_var``.
        momentum: in [0, 1], weight of this batch in ``running_var``.
        eps: added under both roots, > 0.
        variant: ``"B0"``, ``"B1"`` or ``"B2"``, see the equations above.
        process_group: processes whose batches are one batch, in training. Each must call, forward and
            backward, even with no samples. None: this process alone.

    Gradients flow through all statistics; on an exact tie half goes to either side. The gradients of weight,
    bias and v are of this process's samples. Statistics are taken in float32 or better.

    Raises:
        TypeError: the input is not floating point.
        ValueError: a shape or option that does not fit, or training on a single value per channel.
        RuntimeError: a second derivative with a process group.

    Source: the equations above; the paper's table of layers.

    >>> x, one = torch.tensor([[[-4.0, 4.0]]]), torch.ones(1)
    >>> evonorm_b(x, None, one, 0 * one, one, training=True)  # deviation 4; v x + 4 is 0 and 8
    tensor([[[-1.0000,  0.5000]]])
    """
    _check(input, {"running_var": running_var, "weight": weight, "bias": bias, "v": v}, eps)
    if variant not in ("B0", "B1", "B2"):
        raise ValueError(f"variant must be 'B0', 'B1' or 'B2'; got {variant!r}")
    _check_v(v, needed=variant == "B0", by="B0", got=variant)
    _check_momentum(momentum)
    if not training:
        if running_var is None:
            raise ValueError(
                "evonorm_b with training=False divides by running_var; got None: pass it, or training=True"
            )
        process_group = None
    if input.numel() == 0 and process_group is None:
        return _empty(input, weight, bias, v)
    count = input.numel() // input.shape[1]
    if training and count == 1 and (process_group is None or dist.get_world_size(process_group) == 1):
        raise ValueError(
            f"EvoNorm-{variant} needs more than one value per channel in training; got input of shape "
            f"{tuple(input.shape)}: pass a larger batch, or use an S variant, which needs no batch"
        )

    planes = input.flatten(2)
    known = None if training else running_var
    output, var, total = _batch_norm(planes, weight, bias, v, known, eps, variant, process_group)
    if training and running_var is not None and not recomputing():
        with torch.no_grad():
            unbiased = var * (total / (total - 1).clamp(min=1))
            running_var.copy_((1 - momentum) * running_var + momentum * unbiased)
    return output.reshape(input.shape)


def _batch_norm(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    if torch.compiler.is_exporting():
        output, *_, var, count = _batch_plainly(x, *args)
    else:
        output, *_, var, count = _BatchNorm.apply(x, *args)  # type: ignore[no-untyped-call]
    return output, var, count


class _BatchNorm(torch.autograd.Function):
    """Planes ``(N, C, L)`` of any strides -> y; mean and variance of the planes, ``(N, C)``, and of the
    channels, ``(C,)``; and the number of values behind the latter.

    ``known`` is the channels' variance if it is given. Only y carries a gradient. Saved: x, and what is of
    the size of the moments or of the parameters.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        v: Tensor | None,
        known: Tensor | None,
        eps: float,
        variant: BatchVariant,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, ...]:
        moments = [group_moments(part.contiguous(), x.shape[1]) for (part,) in _strips(x)]
        mean, var = (torch.cat(values) for values in zip(*moments, strict=True))
        channels = _channels(mean, var, x.shape[2], known, group)
        slope, offset = _line(mean, var, v, eps, variant)
        left = (channels[1] + eps).sqrt()
        output = torch.empty_like(x)
        for part, out, a, b in _strips(x, output, slope, offset):
            part = widen(part).contiguous()
            larger = torch.maximum(_along(part, a, b), _column(left, part))
            torch.add((part / larger).mul_(_column(weight, part)), _column(bias, part), out=out)
        return output, mean, var, *channels

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, v, known, *ctx.options = inputs
        # `known` is not kept: its copy among the outputs cannot be changed by a later training forward.
        ctx.mark_non_differentiable(*output[1:])
        ctx.training = known is None
        ctx.save_for_backward(x, weight, bias, v, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, bias, v, *moments = ctx.saved_tensors
        known = None if ctx.training else moments[3]
        if torch.is_grad_enabled():
            found = _pull(_batch_plainly, grads[0], x, weight, bias, v, known, *ctx.options)
        else:
            found = _batch_gradients(grads[0], x, weight, bias, v, known, moments, *ctx.options)
        return *found, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Layers side by side are one, with as many times the channels."""
        *tensors, eps, variant, group = args
        folded = _side_by_side(info.batch_size, tensors, in_dims)
        *outputs, count = _BatchNorm.apply(*folded, eps, variant, group)  # type: ignore[no-untyped-call]
        dims = [1, 1, 1, 0, 0]
        unfolded = [t.unflatten(dim, (info.batch_size, -1)) for t, dim in zip(outputs, dims, strict=True)]
        return (*unfolded, count), (*dims, None)


def _channels(
    mean: Tensor, var: Tensor, length: int, known: Tensor | None, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and count of each channel over batch and processes; or the variance that is known."""
    if known is not None:
        whole = widen(known).clone()
        return torch.zeros_like(whole), whole, whole.new_zeros(())
    center, whole, count = across_processes(*pool(mean, var, 0), len(mean) * length, group)
    return center, whole, center.new_full((), count) if isinstance(count, int) else count


def _line(
    mean: Tensor, var: Tensor, v: Tensor | None, eps: float, variant: BatchVariant
) -> tuple[Tensor, Tensor]:
    """Slope and offset ``(N, C)`` of the sample's term, which is a line in x."""
    root = (_power(mean, var, centered=variant == "B0") + eps).sqrt()
    if v is not None:
        return v.to(root.dtype).expand_as(root), root
    return (root if variant == "B1" else torch.full_like(root, -1.0)), root


def _batch_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None,
    known: Tensor | None,
    moments: Sequence[Tensor],
    eps: float,
    variant: BatchVariant,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor | None, ...]:
    """With k = weight grad x / max(left, right)^2 and k' its part where right = slope x + offset is larger,
    right gets -k', left gets k' - k, and

    grad_x = weight grad / max(left, right) - slope k' + what flows through the roots.
    """
    mean, var, center, whole, count = moments
    slope, root = _line(mean, var, v, eps, variant)
    left = (whole + eps).sqrt()
    grad_x = torch.empty_like(x, dtype=widen(x).dtype)
    sums = []
    for g, part, out, a, b in _strips(grad, x, grad_x, slope, root):
        g, part = widen(g).contiguous(), widen(part).contiguous()
        right = _along(part, a, b)
        larger = torch.maximum(right, _column(left, part))
        z = part / larger
        grad_z = _dots(g, z)
        direct = g / larger
        k = z.mul_(direct)
        total = k.sum(-1)
        # 1 where right is larger, 1/2 on a tie, as `torch.maximum` has it.
        k.mul_(right.sub_(_column(left, part)).sign_().add_(1).mul_(0.5))
        sums.append((*grad_z, total, *_dots(k, part)))
        torch.mul(direct.sub_(k * a.unsqueeze(-1)), _column(weight, part), out=out)
    along_z, along_one, total, right_x, right_one = (torch.cat(values) for values in zip(*sums, strict=True))

    grad_slope, grad_root, grad_left = -weight * right_x, -weight * right_one, -weight * (total - right_one)
    if variant == "B1":
        grad_root = grad_root + grad_slope  # the root is the slope too
    # Through the roots, each a line in x - mean: deviations first, since slopes may be huge.
    linear = grad_root / (root * x.shape[2])
    constant = torch.zeros_like(mean) if variant == "B0" else linear * mean
    if known is None:
        through_left = grad_left.sum(0)
        if group is not None:
            dist.all_reduce(through_left, group=group)
        through_left = through_left / (left * count)
        linear, constant = linear + through_left, constant + through_left * (mean - center)
    for part, out, m, a, b in _strips(x, grad_x, mean, linear, constant):
        out.add_(_along(widen(part) - m.unsqueeze(-1), a, b))
    return (
        grad_x.to(x.dtype),
        along_z.sum(0).to(weight.dtype),
        along_one.sum(0).to(bias.dtype),
        None if v is None else grad_slope.sum(0).to(v.dtype),
    )


def _batch_plainly(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None,
    known: Tensor | None,
    eps: float,
    variant: BatchVariant,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, ...]:
    """The same in operations that autograd knows."""
    if group is not None:
        raise RuntimeError(
            "EvoNorm-B with a process_group has no second derivative, nor can it be exported: "
            "set process_group=None for that"
        )
    wide = widen(x)
    mean, var = wide.mean(2), wide.var(2, correction=0)
    channels = _channels(mean, var, x.shape[2], known, None)
    right = _along(wide, *_line(mean, var, v, eps, variant))
    larger = torch.maximum(right, _column((channels[1] + eps).sqrt(), wide))
    y = wide / larger * _column(weight, wide) + _column(bias, wide)
    return y.to(x.dtype), mean, var, *channels


# ---- what both are made of ----


def _strips(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few samples of each tensor at a time, as many of x as stay in a CPU's cache."""
    size = pieces(x, x.shape[1] * x.shape[2], max(len(x), 1))
    return zip(*(t.split(size) for t in (x, *others)), strict=True)


def _column(t: Tensor, x: Tensor) -> Tensor:
    """``(C,)`` -> ``(C, 1)``, to stand beside planes."""
    return t.to(x.dtype).unsqueeze(-1)


def _spread(t: Tensor, x: Tensor) -> Tensor:
    """``(N, groups)`` -> ``(N, C, 1)``: each channel gets its group's value."""
    return t.repeat_interleave(x.shape[1] // t.shape[1], 1).unsqueeze(-1)


def _power(mean: Tensor, var: Tensor, centered: bool) -> Tensor:
    """The variance, or the mean square."""
    return var if centered else var + mean.square()


def _gate(x: Tensor, v: Tensor | None) -> Tensor:
    return torch.sigmoid(x if v is None else x * _column(v, x))


def _along(x: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """A line in x for each plane."""
    return x * slope.unsqueeze(-1) + offset.unsqueeze(-1)


def _dots(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``sum(a * b)`` and ``sum(a)`` of each plane."""
    return plane_sums(a, b, a.new_zeros(a.shape[:2]))


def _pull(
    function: Callable[..., Any],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None,
    *options: Any,
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again: autograd's own, of the plain form."""

    def plain(*tensors: Tensor) -> Tensor:
        rest = (None, *options) if v is None else options
        result = function(*tensors, *rest)
        return result if isinstance(result, Tensor) else result[0]

    present = (x, weight, bias) if v is None else (x, weight, bias, v)
    pull = torch.func.vjp(plain, *present)[1]
    found = pull(grad)
    return (*found, None) if v is None else (*found,)


def _side_by_side(
    batch: int, tensors: Sequence[Tensor | None], in_dims: Sequence[int | None]
) -> list[Tensor | None]:
    """Under vmap: fold the mapped dimension into the channels of planes and of what is per channel."""
    folded: list[Tensor | None] = []
    for t, dim in zip(tensors, in_dims, strict=False):
        if t is None:
            folded.append(None)
            continue
        t = t.expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)
        channels = 1 if t.dim() == 4 else 0
        folded.append(t.movedim(0, channels).flatten(channels, channels + 1))
    return folded


def _affine(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer without its activation."""
    per_channel = (-1, *[1] * (input.dim() - 2))
    return (widen(input) * weight.view(per_channel) + bias.view(per_channel)).to(input.dtype)


def _empty(input: Tensor, weight: Tensor, bias: Tensor, v: Tensor | None) -> Tensor:
    """Nothing, with a zero gradient for every parameter rather than none."""
    return _affine(input, weight if v is None else weight * v, bias)


def _check(input: Tensor, parameters: dict[str, Tensor | None], eps: float) -> None:
    if not input.is_floating_point():
        raise TypeError(f"EvoNorm needs a floating point input; got {input.dtype}: convert with .float()")
    if input.dim() not in (3, 4, 5):
        raise ValueError(
            f"EvoNorm needs input (N, C, H, W), or (N, C, L) or (N, C, D, H, W); got shape "
            f"{tuple(input.shape)}: unsqueeze a batch or a spatial dimension"
        )
    for name, value in parameters.items():
        if value is not None and tuple(value.shape) != (input.shape[1],):
            raise ValueError(
                f"input of shape {tuple(input.shape)} has {input.shape[1]} channels, but {name} has shape "
                f"{tuple(value.shape)}: build the layer with num_features={input.shape[1]}, or move the "
                "channels to dimension 1"
            )
    _check_eps(eps)


def _check_eps(eps: float) -> None:
    if not eps > 0:
        raise ValueError(f"eps must be positive, it keeps constant inputs from dividing by 0; got {eps}")


def _check_momentum(momentum: float) -> None:
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in [0, 1]; got {momentum}")


def _check_v(v: Tensor | None, *, needed: bool, by: str, got: str) -> None:
    if needed != (v is not None):
        state = "no v" if v is None else "a v"
        raise ValueError(f"v is needed by {by} and taken by nothing else; got {state} for variant={got!r}")


def _check_groups(name: str, num_features: int, groups: int) -> None:
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"groups must be an int; got {groups!r}")
    if groups < 1 or num_features % groups:
        nearest = _nearest_divisor(num_features, max(groups, 1))
        raise ValueError(
            f"{name} needs num_features divisible by groups; got num_features={num_features}, "
            f"groups={groups}: pass groups={nearest} or another divisor"
        )


def _nearest_divisor(num_features: int, groups: int) -> int:
    """The largest number of groups, at most that many, that divides the features."""
    return next(g for g in range(min(groups, num_features), 0, -1) if num_features % g == 0)


# ---- the layers ----


class _EvoNorm(nn.Module):
    """Weight, bias and, where the equation has it, v."""

    v: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        apply_act: bool,
        eps: float,
        has_v: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1; got {num_features}")
        _check_eps(eps)
        self.num_features = num_features
        self.apply_act = apply_act
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        v = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if has_v else None
        self.register_parameter("v", v)

    def reset_parameters(self) -> None:
        """Weight and v to one, bias to zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        if self.v is not None:
            nn.init.ones_(self.v)


class _EvoNormB(_EvoNorm):
    _variant: ClassVar[BatchVariant]
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        apply_act: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        _check_momentum(momentum)
        super().__init__(num_features, apply_act, eps, apply_act and self._variant == "B0", device, dtype)
        self.momentum = momentum
        self.process_group = process_group
        self.register_buffer("running_var", torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """The running variance to one."""
        nn.init.ones_(self.running_var)

    def reset_parameters(self) -> None:
        """Weight, v and the running variance to one, bias to zero."""
        super().reset_parameters()
        self.reset_running_stats()

    def forward(
        self, input: Float[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Normalise and activate; with ``apply_act=False`` only scale and shift."""
        if not self.apply_act:
            _check(input, {"weight": self.weight, "bias": self.bias}, self.eps)
            return _affine(input, self.weight, self.bias)
        return evonorm_b(
            input,
            self.running_var,
            self.weight,
            self.bias,
            self.v,
            self.training,
            self.momentum,
            self.eps,
            variant=self._variant,
            process_group=self.process_group,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, apply_act={self.apply_act}, momentum={self.momentum}, eps={self.eps}"
            + ("" if self.process_group is None else ", process_group=...")
        )


class EvoNorm2dB0(_EvoNormB):
    """EvoNorm-B0, in the place of a batch normalisation AND the activation after it.

    ``y = x / max(std_batch, v * x + std_instance) * weight + bias``; evaluation takes ``running_var`` for the
    variance over the batch, the other is always the sample's own. Input ``(N, C, H, W)``; ``(N, C, L)`` and
    ``(N, C, D, H, W)`` too. Made for residual nets that normalise before the convolution (pre-activation): do
    not put an activation after it or a normalisation before it.

    Args:
        num_features: channels C.
        apply_act: False only scales and shifts, ``weight * x + bias``: no v, ``running_var`` at rest. For the
            places where a net had a normalisation without activation.
        momentum: in [0, 1], weight of one batch in ``running_var``.
        eps: under both roots, > 0 (timm's B0 has 1e-3).
        device, dtype: of the parameters and the buffer.
        process_group: take the variance over the batches of all its processes, as `SyncBatchNorm` does;
            ``torch.distributed.group.WORLD`` for all. None: over this process's batch.

    State: ``weight``, ``bias``, ``v``, ``running_var``, named as in timm.

    ``running_var`` moves once each training forward: with gradient accumulation once a micro-batch, and not
    when activation checkpointing repeats a forward (`BatchNorm` moves twice there). Without a process group
    the processes of `DistributedDataParallel` differ, and at every forward it gives all of them the first
    one's buffer.

    Raises:
        ValueError, TypeError: a setting out of range, input that does not fit, or, in training, a single
            value per channel.

    Source: Liu, Brock, Simonyan, Le 2020 (arXiv 2004.02967), EvoNorm-B0.

    >>> layer = EvoNorm2dB0(8)
    >>> layer(torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    """

    _variant = "B0"


class EvoNorm2dB1(_EvoNormB):
    """EvoNorm-B1: ``y = x / max(std_batch, (x + 1) * rms_instance) * weight + bias``.

    Arguments, state (without v), errors and source as `EvoNorm2dB0`.

    >>> EvoNorm2dB1(8)(torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    """

    _variant = "B1"


class EvoNorm2dB2(_EvoNormB):
    """EvoNorm-B2: ``y = x / max(std_batch, rms_instance - x) * weight + bias``.

    Arguments, state (without v), errors and source as `EvoNorm2dB0`.

    >>> EvoNorm2dB2(8)(torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    """

    _variant = "B2"


class _EvoNormS(_EvoNorm):
    _variant: ClassVar[SampleVariant]
    _always_divides: ClassVar[bool] = False

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        group_size: int | None = None,
        apply_act: bool = True,
        act_layer: Callable[[], nn.Module] | None = None,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        adjust_groups: bool = False,
    ) -> None:
        super().__init__(num_features, apply_act, eps, apply_act and self._variant == "S0", device, dtype)
        name = type(self).__name__
        if group_size is not None:
            if group_size < 1 or num_features % group_size:
                raise ValueError(
                    f"{name} needs num_features divisible by group_size; got num_features={num_features}, "
                    f"group_size={group_size}: pass a divisor of {num_features}"
                )
            groups = num_features // group_size
        elif adjust_groups and groups >= 1:
            groups = _nearest_divisor(num_features, groups)
        _check_groups(name, num_features, groups)
        self.groups = groups
        self.act = act_layer() if act_layer is not None else nn.SiLU()
        self.reset_parameters()

    def forward(
        self, input: Float[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Activate and divide; with ``apply_act=False`` only scale and shift (the "a" layers: divide too)."""
        if not self.apply_act and not self._always_divides:
            _check(input, {"weight": self.weight, "bias": self.bias}, self.eps)
            return _affine(input, self.weight, self.bias)
        activation = F.silu if type(self.act) is nn.SiLU else self.act
        return evonorm_s(
            input,
            self.weight,
            self.bias,
            self.v,
            self.groups,
            self.eps,
            variant=self._variant,
            activation=activation if self.apply_act else None,
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, groups={self.groups}, apply_act={self.apply_act}, eps={self.eps}"


class EvoNorm2dS0(_EvoNormS):
    """EvoNorm-S0, in the place of a normalisation AND the activation after it, for any batch size.

    ``y = x * sigmoid(v * x) / std_group * weight + bias``. Input ``(N, C, H, W)``; ``(N, C, L)`` and
    ``(N, C, D, H, W)`` too. Statistics never leave a sample, so evaluation is training and processes have
    nothing to share. Made for residual nets that normalise before the convolution (pre-activation): do not
    put an activation after it or a normalisation before it. Constant input is divided by the root of eps:
    noise on it grows 316 times.

    Args:
        num_features: channels C.
        groups: divides C; each group is of C / groups neighbouring channels.
        group_size: channels in a group, in the place of ``groups``.
        apply_act: False only scales and shifts, ``weight * x + bias``, without v. For the places where a net
            had a normalisation without activation.
        eps: added to the variance under the root, > 0.
        device, dtype: of the parameters.
        adjust_groups: where ``groups`` does not divide C, take the next smaller number that does, as the
            official code, rather than raise.

    State: ``weight``, ``bias``, ``v``, named as in timm.

    Raises:
        ValueError, TypeError: a setting out of range, groups that do not divide, input that does not fit.

    Source: Liu, Brock, Simonyan, Le 2020 (arXiv 2004.02967), EvoNorm-S0.

    >>> layer = EvoNorm2dS0(8, groups=4)
    >>> layer(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _variant = "S0"

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        group_size: int | None = None,
        apply_act: bool = True,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        adjust_groups: bool = False,
    ) -> None:
        super().__init__(
            num_features, groups, group_size, apply_act, None, eps, device, dtype, adjust_groups=adjust_groups
        )


class EvoNorm2dS0a(EvoNorm2dS0):
    """timm's EvoNorm-S0a: as `EvoNorm2dS0`, except that without activation it divides all the same.

    ``apply_act=False`` gives ``x / std_group * weight + bias``. Arguments, state and errors as there.

    >>> EvoNorm2dS0a(8, groups=4, apply_act=False)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _always_divides = True

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        group_size: int | None = None,
        apply_act: bool = True,
        eps: float = 1e-3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        adjust_groups: bool = False,
    ) -> None:
        super().__init__(
            num_features, groups, group_size, apply_act, eps, device, dtype, adjust_groups=adjust_groups
        )


class EvoNorm2dS1(_EvoNormS):
    """EvoNorm-S1: ``y = silu(x) / std_group * weight + bias``.

    Arguments, errors and source as `EvoNorm2dS0`, and ``act_layer``, which makes the activation (None: SiLU);
    it must not work in place. Any other than SiLU keeps more for backward than the input.

    >>> EvoNorm2dS1(8, groups=4, act_layer=nn.ReLU)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _variant = "S1"


class EvoNorm2dS2(_EvoNormS):
    """EvoNorm-S2: ``y = silu(x) / rms_group * weight + bias``, rms the root of the mean square.

    Arguments and errors as `EvoNorm2dS1`.

    >>> EvoNorm2dS2(8, groups=4)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _variant = "S2"


class _AlwaysDivides(_EvoNormS):
    _always_divides = True

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        group_size: int | None = None,
        apply_act: bool = True,
        act_layer: Callable[[], nn.Module] | None = None,
        eps: float = 1e-3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        adjust_groups: bool = False,
    ) -> None:
        super().__init__(
            num_features,
            groups,
            group_size,
            apply_act,
            act_layer,
            eps,
            device,
            dtype,
            adjust_groups=adjust_groups,
        )


class EvoNorm2dS1a(_AlwaysDivides):
    """timm's EvoNorm-S1a: as `EvoNorm2dS1`, except that without activation it divides all the same.

    >>> EvoNorm2dS1a(8, groups=4, apply_act=False)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _variant = "S1"


class EvoNorm2dS2a(_AlwaysDivides):
    """timm's EvoNorm-S2a: as `EvoNorm2dS2`, except that without activation it divides all the same.

    >>> EvoNorm2dS2a(8, groups=4, apply_act=False)(torch.randn(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    _variant = "S2"
