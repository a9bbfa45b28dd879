"""Inputs `(N, C, ...)` as planes `(N, C, L)`: their moments, sums over them and affine maps of them.

A plane is what one sample holds of one channel. In memory either the planes stand one after the other or,
channels last, the channels of each place do. Both are worked on as they lie, on a CPU a few samples at once,
and what has the shape of the planes comes back in the layout that they came in.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trueup._numerics.chunking import sample_chunks, write
from trueup._numerics.moments import group_moments
from trueup._numerics.upcasting import upcast

__all__ = [
    "instance_affine",
    "instance_moments",
    "instance_sums",
    "is_channels_last",
    "per_channel_view",
    "restore_shape",
    "upcast_contiguous",
]


def per_channel_view(
    input: Float[Tensor, "batch channels *spatial"],
) -> Float[Tensor, "samples channels length"]:
    """All positions in one dimension; without a copy in either layout. No values are no samples."""
    planes = input.flatten(2) if input.dim() > 2 else input.unsqueeze(2)
    return planes if planes.numel() else planes[:0]


def restore_shape(
    input: Float[Tensor, "batch channels *spatial"], planes: Float[Tensor, "samples channels length"]
) -> Float[Tensor, "batch channels *spatial"]:
    """Fresh planes in the shape of the input.

    To autograd they are no view, as in torch's own matmul: an operation in place after the layer, such as
    `ReLU(inplace=True)`, would be forbidden on a view made inside an autograd Function, and slow on another.
    """
    return cast(Tensor, torch.ops.aten._unsafe_view(planes, input.shape))


def is_channels_last(x: Float[Tensor, "samples channels length"]) -> bool:
    """Do the channels of each place stand together in memory?"""
    return x.shape[2] == 1 or (not x.is_contiguous() and x.transpose(1, 2).is_contiguous())


def upcast_contiguous(
    x: Float[Tensor, "samples channels length"], last: bool
) -> Float[Tensor, "samples channels length"]:
    """Widen to float32 or better and close gaps in memory: channels last, or one plane after the other.

    Copies only what lies otherwise. Elementwise kernels are many times slower on mixed layouts.
    """
    x = upcast(x)
    return x.transpose(1, 2).contiguous().transpose(1, 2) if last else x.contiguous()


def instance_moments(
    x: Float[Tensor, "samples channels length"],
) -> tuple[Float[Tensor, "samples channels"], Float[Tensor, "samples channels"]]:
    """Mean and biased variance of each plane, in float32 or better."""
    if not is_channels_last(x):
        return group_moments(x, x.shape[1])
    moments = []
    for (part,) in sample_chunks(x):
        part = upcast(part)
        mean = part.mean(2, keepdim=True)
        centered = part - mean
        moments.append((mean.squeeze(2), centered.mul_(centered).mean(2)))
    means, variances = zip(*moments, strict=True)
    return torch.cat(means), torch.cat(variances)


def instance_affine(
    x: Float[Tensor, "samples channels length"],
    center: Float[Tensor, "samples channels"],
    scale: Float[Tensor, "samples channels"],
    shift: Float[Tensor, "samples channels"],
) -> Float[Tensor, "samples channels length"]:
    """``(x - center) * scale + shift`` in one pass, in x's dtype."""
    if x.numel() and not is_channels_last(x):
        # Batch normalisation by given statistics is torch's fastest kernel for this on a CPU.
        planes = x.reshape(1, -1, x.shape[2])
        one = torch.ones_like(center).flatten()
        y = F.batch_norm(planes, center.flatten(), one, scale.flatten(), shift.flatten(), eps=0.0)
        return y.view_as(x)
    output = torch.empty_like(x)
    for part, out, *maps in sample_chunks(x, output, center, scale, shift):
        c, s, t = (value.unsqueeze(2) for value in maps)
        write(out, torch.addcmul, t, upcast(part) - c, s)
    return output


def instance_sums(
    grad: Float[Tensor, "samples channels length"],
    x: Float[Tensor, "samples channels length"],
    center: Float[Tensor, "samples channels"] | None = None,
) -> tuple[Float[Tensor, "samples channels"], Float[Tensor, "samples channels"]]:
    """Sums over each plane of ``grad * (x - center)`` and of ``grad``, in float32 or better; both contiguous.

    The center, 0 if None, is taken off before the product: it may be large beside the deviations from it.
    """
    if x.numel() == 0 or is_channels_last(x):
        sums = []
        for g, part, *c in sample_chunks(grad, x, *([] if center is None else [center])):
            g, part = upcast(g), upcast(part)
            deviations = part - c[0].unsqueeze(2) if c else part
            sums.append(((g * deviations).sum(2), g.sum(2)))
        along_x, along_one = (torch.cat(parts) for parts in zip(*sums, strict=True))
        return along_x, along_one
    if center is None:
        center = upcast(x).new_zeros(x.shape[:2])
    # The gradients of weight and bias of a batch normalisation with a channel per plane are these sums.
    planes, length = center.numel(), x.shape[2]
    _, along_x, along_one = torch.ops.aten.native_batch_norm_backward(
        upcast(grad).reshape(1, planes, length),
        upcast(x).reshape(1, planes, length),
        torch.ones_like(center).flatten(),
        None,
        None,
        center.flatten(),
        torch.ones_like(center).flatten(),
        True,
        0.0,
        [False, True, True],
    )
    return along_x.view_as(center), along_one.view_as(center)
