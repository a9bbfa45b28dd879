"""Recomputation, by checkpointing or a compiler, for layers that update buffers in training."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["is_recomputing", "snapshot"]


def is_recomputing() -> bool:
    """Return whether this forward pass runs inside a backward pass, to recompute activations.

    A layer that updates buffers with every training batch must not do so again: the first pass did. Both
    kinds of `torch.utils.checkpoint` are recognised. False while a graph is compiled, where the compiler
    decides what is recomputed.

    >>> is_recomputing()
    False
    """
    # The autograd engine's id of the running backward pass, -1 outside one; checkpointing uses it too.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def snapshot(buffer: Tensor) -> Tensor:
    """Return the present value of a buffer that is about to be updated, for use in a backward pass.

    A compiler may recompute values from the buffer in backward, after the update. It gets a copy, made by an
    operation that it cannot repeat. Elsewhere this is the buffer itself, since autograd keeps what is
    computed from it.

    >>> snapshot(torch.ones(2))
    tensor([1., 1.])
    """
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        copied: Tensor = _copy(buffer)
        return copied
    return buffer


# Compilers recompute only operations that they know to be cheap, and they do not know this one.
# The schema is given, because it cannot be inferred from a function wrapped by the shape checker.
@torch.library.custom_op("trueup::copy", mutates_args=(), schema="(Tensor t) -> Tensor")
def _copy(t: Tensor) -> Tensor:
    return t.clone()


@_copy.register_fake
def _(t: Tensor) -> Tensor:
    return torch.empty_like(t)
