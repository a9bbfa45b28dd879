"""Normalization by statistics that follow from the moments of the instances, in one pass each way.

An instance is one channel of one sample. Whatever the statistics, the result is an affine map per instance,

    y = (x - mean) * scale + shift        scale, shift = rule(mean, var, ...)        all (N, C)

so that a method is its rule, on tensors of the size of the moments. Backward needs two sums per instance; the
gradient of the rule itself is left to autograd. Saved for backward: the input and such small tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from trueup._numerics.custom_function import must_use_composite_ops, vjp
from trueup._numerics.per_channel import instance_affine, instance_moments, instance_sums
from trueup._numerics.upcasting import upcast

__all__ = ["Rule", "affine_map", "constant_moments", "normalize_by_rule"]

# Takes mean and biased variance `(N, C)` of the instances and some tensors or None; returns scale and shift.
Rule = Callable[..., Tensor]


def affine_map(
    instance_mean: Float[Tensor, "samples channels"],
    mean: Float[Tensor, "*samples channels"],
    var: Float[Tensor, "*samples channels"],
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    eps: float,
) -> Float[Tensor, "2 samples channels"]:
    """Return scale and shift of the normalization by a mean and a variance; what a rule ends with."""
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = (instance_mean - mean) * scale
    shift = shift if bias is None else shift + bias
    return torch.stack((scale.expand_as(shift), shift))


def constant_moments(x: Float[Tensor, "samples channels length"]) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance `(N, C)` of each instance, as constants for the gradient."""
    with torch.no_grad():
        return instance_moments(x.detach())  # detached too: forward-mode differentiation ignores `no_grad`


def normalize_by_rule(
    x: Float[Tensor, "samples channels length"],
    moments: tuple[Tensor, Tensor],
    rule: Rule,
    equation: Rule,
    *tensors: Tensor | None,
) -> Float[Tensor, "samples channels length"]:
    """Apply the affine map that the rule makes of the moments, through which the gradient flows too.

    Args:
        x: per-channel view.
        moments: its `constant_moments`.
        rule: returns scale and shift, stacked.
        equation: the same rule in the form that is easiest to check; compilers, exports and second
            derivatives use it.
        *tensors: further arguments of both.
    """
    if must_use_composite_ops() or torch.compiler.is_compiling():
        return _composite(x, equation, *tensors)
    result = _Normalize.apply(x, *moments, rule, equation, *tensors)  # type: ignore[no-untyped-call]
    return cast(Tensor, result[0])


def _composite(x: Tensor, equation: Rule, *tensors: Tensor | None) -> Tensor:
    """Do the same in operations that autograd can differentiate."""
    values = upcast(x)
    mean = values.mean(2)
    deviations = values - mean.unsqueeze(2)
    scale, shift = equation(mean, deviations.square().mean(2), *tensors)
    y: Tensor = deviations * scale.unsqueeze(2) + shift.unsqueeze(2)
    return y.to(x.dtype)


class _Normalize(torch.autograd.Function):
    """As `normalize_by_rule`; returns the scale too."""

    @staticmethod
    def forward(
        x: Tensor, mean: Tensor, var: Tensor, rule: Rule, equation: Rule, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        scale, shift = rule(mean, var, *tensors)
        return instance_affine(x, mean, scale, shift), scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, mean, var, ctx.rule, ctx.equation, *tensors = inputs
        scale = output[1]
        ctx.mark_non_differentiable(scale)
        # For instances of one value these are as large as the input, and cheap.
        ctx.save_for_backward(x, *tensors, *((mean, var, scale) if x.shape[2] > 1 else ()))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, *saved = ctx.saved_tensors  # read once: under checkpointing a second read fails
        tensors, of_instances = (saved[:-3], saved[-3:]) if x.shape[2] > 1 else (saved, None)
        if torch.is_grad_enabled():
            found = vjp(lambda x, *t: _composite(x, ctx.equation, *t), grads[0], x, *tensors)
        else:
            if of_instances is None:
                moments = instance_moments(x)
                of_instances = [*moments, ctx.rule(*moments, *tensors)[0]]
            learned = ctx.needs_input_grad[5:]
            found = _gradients(grads[0], x, ctx.rule, of_instances, tensors, learned)
        grad_x, *of_tensors = found
        return grad_x, None, None, None, None, *of_tensors

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """Map the composite form. A rule may mix channels, which then cannot hold the mapped dimension."""
        x, mean, _, _, equation, *tensors = args
        mapped = torch.func.vmap(
            lambda x, *t: _composite(x, equation, *t), in_dims=(in_dims[0], *in_dims[5:])
        )
        # Nothing reads the scale: under a transformation the backward pass takes the composite form too.
        return (mapped(x, *tensors), mean.clone()), (0, in_dims[1])


def _gradients(
    grad: Tensor,
    x: Tensor,
    rule: Rule,
    of_instances: Sequence[Tensor],
    tensors: Sequence[Tensor | None],
    learned: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x and, where they are learned, of the tensors.

    Scale and shift have the gradients sum(grad * (x - mean)) and sum(grad). Autograd leads them through the
    rule to the moments, and with g_mean, g_var per instance of L values

        grad_x = scale * grad + (g_mean - scale * sum(grad)) / L + 2 * g_var / L * (x - mean)
    """
    mean, var, scale = of_instances
    grad, values = upcast(grad), upcast(x)
    sums = torch.stack(instance_sums(grad, values, mean))
    # Faster than `torch.func.vjp`, and no transformation of `torch.func` gets here.
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (mean, var)]
        arguments = [
            t.detach().requires_grad_() if t is not None and is_learned else t
            for t, is_learned in zip(tensors, learned, strict=True)
        ]
        leaves += [t for t in arguments if t is not None and t.requires_grad]
        found = torch.autograd.grad(rule(*leaves[:2], *arguments), leaves, sums, allow_unused=True)
    grad_mean, grad_var, *of_learned = found
    remaining = iter(of_learned)
    grads = [next(remaining) if is_learned else None for is_learned in learned]
    slope = torch.zeros_like(var) if grad_var is None else 2 / x.shape[2] * grad_var
    constant = (grad_mean - scale * sums[1]) / x.shape[2]
    grad_x = instance_affine(values, mean, slope, constant)
    grad_x.addcmul_(grad, scale.unsqueeze(2))
    return grad_x.to(x.dtype), *grads
