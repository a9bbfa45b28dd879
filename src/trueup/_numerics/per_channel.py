"""Per-channel views `(N, C, L)` of inputs `(N, C, ...)`: moments, sums and affine maps of their instances.

An instance is one channel of one sample, L values. In memory either instance follows instance (contiguous) or
the channels of each position stand together (channels last). Both layouts are processed without a copy, on a
CPU a few samples at a time, and results with the shape of the view have its layout.
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
    """Return the input with all positions in one dimension, without a copy in either layout.

    An input without values becomes one without samples.
    """
    view = input.flatten(2) if input.dim() > 2 else input.unsqueeze(2)
    return view if view.numel() else view[:0]


def restore_shape(
    input: Float[Tensor, "batch channels *spatial"], output: Float[Tensor, "samples channels length"]
) -> Float[Tensor, "batch channels *spatial"]:
    """Return a new tensor of the shape of a per-channel view in the shape of the input.

    To autograd the result is no view, as in torch's own matmul. An in-place operation after the layer, such
    as `ReLU(inplace=True)`, would be an error on a view made in an autograd Function, and slow on another.
    """
    return cast(Tensor, torch.ops.aten._unsafe_view(output, input.shape))


def is_channels_last(x: Float[Tensor, "samples channels length"]) -> bool:
    """Return whether the channels of each position stand together in memory."""
    return x.shape[2] == 1 or (not x.is_contiguous() and x.transpose(1, 2).is_contiguous())


def upcast_contiguous(
    x: Float[Tensor, "samples channels length"], channels_last: bool
) -> Float[Tensor, "samples channels length"]:
    """Return the view in float32 or better and dense in memory, channels last or contiguous.

    Copies only what is not so already. Elementwise kernels are many times slower on mixed layouts.
    """
    x = upcast(x)
    return x.transpose(1, 2).contiguous().transpose(1, 2) if channels_last else x.contiguous()


def instance_moments(
    x: Float[Tensor, "samples channels length"],
) -> tuple[Float[Tensor, "samples channels"], Float[Tensor, "samples channels"]]:
    """Return mean and biased variance of each instance, in float32 or better."""
    if not is_channels_last(x):
        return group_moments(x, x.shape[1])
    moments = []
    for (chunk,) in sample_chunks(x):
        chunk = upcast(chunk)
        mean = chunk.mean(2, keepdim=True)
        deviations = chunk - mean
        moments.append((mean.squeeze(2), deviations.mul_(deviations).mean(2)))
    means, variances = zip(*moments, strict=True)
    return torch.cat(means), torch.cat(variances)


def instance_affine(
    x: Float[Tensor, "samples channels length"],
    center: Float[Tensor, "samples channels"],
    scale: Float[Tensor, "samples channels"],
    shift: Float[Tensor, "samples channels"],
) -> Float[Tensor, "samples channels length"]:
    """Compute `(x - center) * scale + shift` in one pass, in the dtype of x."""
    if x.numel() and not is_channels_last(x):
        # Batch normalisation by given statistics, with one channel per instance, is torch's fastest kernel
        # for this on a CPU.
        instances = x.reshape(1, -1, x.shape[2])
        one = torch.ones_like(center).flatten()
        y = F.batch_norm(instances, center.flatten(), one, scale.flatten(), shift.flatten(), eps=0.0)
        return y.view_as(x)
    output = torch.empty_like(x)
    for chunk, out, *values in sample_chunks(x, output, center, scale, shift):
        c, a, b = (value.unsqueeze(2) for value in values)
        write(out, torch.addcmul, b, upcast(chunk) - c, a)
    return output


def instance_sums(
    grad: Float[Tensor, "samples channels length"],
    x: Float[Tensor, "samples channels length"],
    center: Float[Tensor, "samples channels"] | None = None,
) -> tuple[Float[Tensor, "samples channels"], Float[Tensor, "samples channels"]]:
    """Return the sums over each instance of `grad * (x - center)` and of `grad`.

    Both are contiguous and in float32 or better. The center, 0 if None, is subtracted before the product,
    since it may be large beside the deviations from it.
    """
    if x.numel() == 0 or is_channels_last(x):
        sums = []
        for g, chunk, *c in sample_chunks(grad, x, *([] if center is None else [center])):
            g, chunk = upcast(g), upcast(chunk)
            deviations = chunk - c[0].unsqueeze(2) if c else chunk
            sums.append(((g * deviations).sum(2), g.sum(2)))
        sum_gx, sum_g = (torch.cat(values) for values in zip(*sums, strict=True))
        return sum_gx, sum_g
    if center is None:
        center = upcast(x).new_zeros(x.shape[:2])
    # The gradients of weight and bias of a batch normalisation with one channel per instance are these sums.
    instances, length = center.numel(), x.shape[2]
    _, sum_gx, sum_g = torch.ops.aten.native_batch_norm_backward(
        upcast(grad).reshape(1, instances, length),
        upcast(x).reshape(1, instances, length),
        torch.ones_like(center).flatten(),
        None,
        None,
        center.flatten(),
        torch.ones_like(center).flatten(),
        True,
        0.0,
        [False, True, True],
    )
    return sum_gx.view_as(center), sum_g.view_as(center)
