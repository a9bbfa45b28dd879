"""Helpers for custom autograd Functions: vmap, second derivatives, and when to avoid the Function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["fold_vmap_dim", "must_use_composite_ops", "vjp"]


def must_use_composite_ops() -> bool:
    """Return whether a layer must use composite operations rather than its autograd Function.

    True while a model is exported or traced, since the graph holds only operations and they must carry the
    gradient, and in forward-mode differentiation (`torch.func.jvp`, the outer half of `torch.func.hessian`).
    """
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.compiler.is_exporting() or traced or forward_ad._current_level >= 0


def vjp(function: Callable[..., Tensor], grad: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return autograd's gradients of a function of some tensors; they can be differentiated again.

    For the backward pass of an autograd Function, given its equation in composite operations. A tensor that
    is None reaches the function as None, and so does its gradient the caller.

    >>> x, y = torch.tensor([2.0, 3.0])
    >>> vjp(lambda x, _, y: x * y, torch.ones(()), x, None, y)
    (tensor(3.), None, tensor(2.))
    """

    def of_present(*present: Tensor) -> Tensor:
        values = iter(present)
        return function(*(None if t is None else next(values) for t in tensors))

    grads = iter(torch.func.vjp(of_present, *(t for t in tensors if t is not None))[1](grad))
    return tuple(None if t is None else next(grads) for t in tensors)


def fold_vmap_dim(
    batch: int, tensors: Sequence[Tensor | None], in_dims: Sequence[int | None]
) -> list[Tensor | None]:
    """Fold the dimension that vmap maps over into the channels.

    Several normalisations side by side equal one with that many times the channels. Each tensor is, per
    element of the batch, a per-channel view `(N, C, L)` or a vector `(C,)`. None stays None.

    Args:
        batch: length of the mapped dimension.
        tensors: with the mapped dimension.
        in_dims: where each tensor has that dimension; None where it is shared.

    >>> x, weight = torch.ones(2, 5, 3, 4), torch.ones(3)
    >>> [t.shape for t in fold_vmap_dim(2, (x, weight), (0, None))]
    [torch.Size([5, 6, 4]), torch.Size([6])]
    """
    folded: list[Tensor | None] = []
    for t, dim in zip(tensors, in_dims, strict=True):
        if t is None:
            folded.append(None)
            continue
        t = t.expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)
        channels = 1 if t.dim() == 4 else 0
        folded.append(t.movedim(0, channels).flatten(channels, channels + 1))
    return folded
