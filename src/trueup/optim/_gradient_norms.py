"""Norms and largest entries of whole gradients, sharded or not, in float32 or better."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

from trueup._numerics.flat_chunks import CHUNK_SIZE, chunks, in_memory_order, uses_single_tensor_route
from trueup._numerics.upcasting import upcast_dtype


def norm_of(grad: Tensor) -> Tensor:
    """Return ||g|| of the whole tensor, 0-d, summed in float32 or better."""
    dtype = upcast_dtype(grad.dtype)
    large = grad.numel() > CHUNK_SIZE
    if large and uses_single_tensor_route(grad, None) and not torch.compiler.is_compiling():
        # On a CPU torch sums float32 squares in a few long chains: the norm of 12.6 million entries is 5e-4
        # too small.
        (flat,) = in_memory_order(grad) or [grad.reshape(-1)]
        parts = [torch.linalg.vector_norm(chunk, dtype=dtype) for (chunk,) in chunks(flat)]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(parts))
        return norm
    norm = torch.linalg.vector_norm(grad, dtype=dtype)
    # What follows combines the norm with plain scalars, so a shard's norm must be a plain tensor.
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def norms_of(grads: list[Tensor]) -> Tensor:
    """Return `norm_of` each gradient, of shape (tensors,)."""
    if _has_list_kernels(grads):
        return torch.stack(torch._foreach_norm(grads, 2, upcast_dtype(grads[0].dtype)))
    return torch.stack([norm_of(grad) for grad in grads])


def largest_entry(grad: Tensor) -> Tensor:
    """Return max |g| of the whole tensor, 0-d; NaN or infinity if there is one."""
    local = grad.to_local() if isinstance(grad, DTensor) else grad
    # A process may hold none of a small tensor's rows.
    value = torch.stack(local.aminmax()).abs().amax() if local.numel() else local.new_zeros(())
    value = value.to(upcast_dtype(grad.dtype))
    if isinstance(grad, DTensor):
        # Infinity for NaN, which a maximum over processes may lose.
        value = torch.where(value.isnan(), math.inf, value)
        over = [Replicate() if place.is_replicate() else Partial("max") for place in grad.placements]
        value = DTensor.from_local(value, grad.device_mesh, over).full_tensor()
    return value


def largest_entries(grads: list[Tensor]) -> Tensor:
    """Return the `largest_entry` of each gradient, of shape (tensors,)."""
    if _has_list_kernels(grads):
        return torch.stack(torch._foreach_norm(grads, math.inf)).to(upcast_dtype(grads[0].dtype))
    return torch.stack([largest_entry(grad) for grad in grads])


def _has_list_kernels(tensors: list[Tensor]) -> bool:
    """Return whether torch's norms of lists are exact and fast: not on a CPU, nor for shards."""
    return not any(t.is_cpu or isinstance(t, DTensor) or not t.numel() for t in tensors)
