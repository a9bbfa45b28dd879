"""What a layer's own autograd Function needs beside its two passes: vmap, second derivatives, a detour."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["fold_vmap_dim", "must_use_composite_ops", "vjp"]


def must_use_composite_ops() -> bool:
    """Must the layer be written in operations that autograd knows, rather than as a Function of its own?

    An exported or traced graph holds operations only, which must carry the gradient; forward differentiation,
    `torch.func.jvp` or the outer half of `torch.func.hessian`, goes through them.
    """
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.compiler.is_exporting() or traced or forward_ad._current_level >= 0


def vjp(function: Callable[..., Tensor], grad: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of a function of some tensors that can be differentiated again: autograd's own.

    For the backward pass of a Function, given the same in plain operations. None is passed on, and has None.

    >>> x, y = torch.tensor([2.0, 3.0])
    >>> vjp(lambda x, _, y: x * y, torch.ones(()), x, None, y)
    (tensor(3.), None, tensor(2.))
    """

    def of_given(*given: Tensor) -> Tensor:
        values = iter(given)
        return function(*(None if t is None else next(values) for t in tensors))

    found = iter(torch.func.vjp(of_given, *(t for t in tensors if t is not None))[1](grad))
    return tuple(None if t is None else next(found) for t in tensors)


def fold_vmap_dim(
    batch: int, tensors: Sequence[Tensor | None], in_dims: Sequence[int | None]
) -> list[Tensor | None]:
    """Under vmap: normalisations side by side are one, with as many times the channels.

    The mapped dimension goes into the channels, of planes ``(N, C, L)`` and of what is ``(C,)``.

    >>> planes, weight = torch.ones(2, 5, 3, 4), torch.ones(3)
    >>> [t.shape for t in fold_vmap_dim(2, (planes, weight), (0, None))]
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
