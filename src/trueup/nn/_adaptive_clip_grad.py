"""Adaptive gradient clipping: bound the gradient of each unit by a fraction of the unit's weights.

Problem: without normalisation a single large gradient moves the weights far away, and one bound on the
gradient's norm does not suit layers of different scale. Idea: bound the step relative to the weights. For
each output unit i (row of a matrix, filter of a convolution; a vector is one unit)

    g_i <- g_i * clip * max(|w_i|, eps) / |g_i|        where |g_i| > clip * max(|w_i|, eps)

Brock, De, Smith, Simonyan: High-Performance Large-Scale Image Recognition Without Normalization, 2021, arXiv
2102.06171, equation 3; an option of FedWon (Zhuang, Lyu, ICLR 2024, arXiv 2306.05879).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["adaptive_clip_grad_"]


def clip_factor(grad_norm: Tensor, weight_norm: Tensor, clip: float, eps: float, grad_eps: float) -> Tensor:
    """Compute the factor of each unit's gradient from the norms: the equation above."""
    bound = clip * weight_norm.clamp_min(eps)
    return torch.where(grad_norm > bound, bound / grad_norm.clamp_min(grad_eps), 1.0)


@torch.no_grad()
def adaptive_clip_grad_(
    parameters: Tensor | Iterable[Tensor], clip: float = 0.01, *, eps: float = 1e-3, grad_eps: float = 1e-6
) -> None:
    """Clip the gradients of the parameters in place, each unit relative to its weights.

    Units lie along dimension 0 of parameters with two or more dimensions; a vector or scalar is one unit.
    Call it between `backward` and `optimizer.step`. The authors leave out the last, linear layer.

    Args:
        parameters: one parameter or several, as for `torch.nn.utils.clip_grad_norm_`; those without a
            gradient are skipped.
        clip: > 0, largest ratio of the norms of gradient and weights. Smaller batches need a larger one: 0.01
            suits batches of some thousands, 0.16 batches of 256.
        eps: floor of the norm of the weights, > 0, so that weights of zero can move.
        grad_eps: floor of the norm of the gradient in the division, > 0.

    Norms are computed in float32 or better; sharded parameters (FSDP2) are clipped by the norms of whole
    units. No value is read back from the device. NaN in a gradient remains.

    Raises:
        ValueError: a setting that is not positive.
        TypeError: complex parameters, sparse gradients.

    Source: Brock et al. 2021, equation 3.

    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    >>> weight.grad = torch.tensor([[30.0, 40.0], [0.5, 0.0]])
    >>> adaptive_clip_grad_(weight, clip=0.5, eps=0.1)
    >>> weight.grad
    tensor([[1.5000, 2.0000],
            [0.0500, 0.0000]])
    """
    for name, value in (("clip", clip), ("eps", eps), ("grad_eps", grad_eps)):
        if not value > 0:
            raise ValueError(f"{name} must be positive; got {value}")
    # Concatenate the norms on each device: a few small kernels, rather than a few per parameter.
    by_device: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    # dict.fromkeys: a parameter that is listed twice, as tied weights may be, is clipped once.
    for parameter in [parameters] if isinstance(parameters, Tensor) else dict.fromkeys(parameters):
        if parameter.grad is not None:
            _check(parameter, parameter.grad)
            by_device[parameter.grad.device, parameter.grad.dtype].append(parameter)

    for (_, dtype), members in by_device.items():
        grads = [p.grad for p in members if p.grad is not None]
        dtype = torch.promote_types(dtype, torch.float32)
        weight_norms = [_unit_norms(p, dtype) for p in members]
        grad_norm = torch.cat([_unit_norms(g, dtype).flatten() for g in grads])
        weight_norm = torch.cat([n.flatten() for n in weight_norms])
        factors = clip_factor(grad_norm, weight_norm, clip, eps, grad_eps).split(
            [n.numel() for n in weight_norms]
        )
        for grad, norms, factor in zip(grads, weight_norms, factors, strict=True):
            _multiply_(grad, factor.view_as(norms))


def _multiply_(grad: Tensor, factor: Tensor) -> None:
    if isinstance(factor, DTensor) and isinstance(grad, DTensor) and factor.numel() == 1:
        # DTensor does not multiply a sharded tensor in place by a replicated single value.
        grad.to_local().mul_(factor.full_tensor())
    else:
        grad.mul_(factor)


def _unit_norms(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the norms of the units, in a shape that broadcasts over x."""
    dims = tuple(range(1, x.dim())) if x.dim() > 1 else None
    norms: Tensor = torch.linalg.vector_norm(x, 2, dims, keepdim=True, dtype=dtype)
    return norms


def _check(parameter: Tensor, grad: Tensor) -> None:
    if grad.layout != torch.strided:
        raise TypeError(
            f"adaptive_clip_grad_ needs dense gradients; got one of layout {grad.layout}, of a parameter of "
            f"shape {tuple(parameter.shape)}: build the embedding with sparse=False, or leave it out"
        )
    if parameter.is_complex():
        raise TypeError(
            f"adaptive_clip_grad_ needs real parameters; got {parameter.dtype} of shape "
            f"{tuple(parameter.shape)}: leave it out"
        )
