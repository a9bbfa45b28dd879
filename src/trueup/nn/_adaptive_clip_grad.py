"""Adaptive gradient clipping: the gradient of each unit is at most a share of the unit's weights.

Problem: without normalisation a single large gradient throws the weights far away, and one bound on the
gradient's norm does not suit layers of different scale. Idea: what matters is the step relative to the
weights. For each output unit i (row of a matrix, filter of a convolution; a vector is one unit)

    g_i <- g_i * clip * max(|w_i|, eps) / |g_i|        where |g_i| > clip * max(|w_i|, eps)

Brock, De, Smith, Simonyan: High-Performance Large-Scale Image Recognition Without Normalization, 2021, arXiv
2102.06171, equation 3; an option of FedWon (Zhuang, Lyu, ICLR 2024, arXiv 2306.05879). It is used like
`torch.nn.utils.clip_grad_norm_`, and so it lives in `trueup.nn`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["adaptive_clip_grad_"]


@torch.no_grad()
def adaptive_clip_grad_(
    parameters: Tensor | Iterable[Tensor], clip: float = 0.01, *, eps: float = 1e-3, grad_eps: float = 1e-6
) -> None:
    """Clip the gradients of the parameters in place, each unit relative to its weights.

    Units lie along dimension 0 of parameters with two or more dimensions; a vector or scalar is one unit.
    Call it between ``backward`` and ``optimizer.step``. The authors leave out the last, linear layer.

    Args:
        parameters: one parameter or several, as for `torch.nn.utils.clip_grad_norm_`; those without a
            gradient are left alone.
        clip: largest ratio of the norms of gradient and weights, > 0. The smaller the batch the larger: 0.01
            suits batches of some thousands, 0.16 batches of 256.
        eps: floor of the norm of the weights, > 0, so that weights of zero can move.
        grad_eps: floor of the norm of the gradient in the division, > 0.

    Norms are taken in float32 or better, of whole units where parameters are sharded (FSDP2). Nothing is read
    back from the device. A gradient with NaN stays so.

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
    # All units of a device side by side: the rule is a few small kernels, not a few for each parameter.
    together: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    # One that is listed twice, as tied weights may be, is clipped once.
    for parameter in [parameters] if isinstance(parameters, Tensor) else dict.fromkeys(parameters):
        if parameter.grad is not None:
            _check(parameter, parameter.grad)
            together[parameter.grad.device, parameter.grad.dtype].append(parameter)

    for (_, dtype), members in together.items():
        grads = [p.grad for p in members if p.grad is not None]
        wide = torch.promote_types(dtype, torch.float32)
        weight_norms = [_unit_norms(p, wide) for p in members]
        norms = torch.cat([_unit_norms(g, wide).flatten() for g in grads])
        bounds = clip * torch.cat([n.flatten() for n in weight_norms]).clamp_min(eps)
        factors = torch.where(norms > bounds, bounds / norms.clamp_min(grad_eps), 1.0)
        for grad, like, factor in zip(
            grads, weight_norms, factors.split([n.numel() for n in weight_norms]), strict=True
        ):
            _scale_(grad, factor.view_as(like))


def _scale_(grad: Tensor, factor: Tensor) -> None:
    if isinstance(factor, DTensor) and isinstance(grad, DTensor) and factor.numel() == 1:
        # One unit, which DTensor would not multiply in place by its whole factor where it is sharded.
        grad.to_local().mul_(factor.full_tensor())
    else:
        grad.mul_(factor)


def _unit_norms(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Norms of the units, in a shape that broadcasts over x."""
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
