"""What a layer whose buffers move must know of recomputation, by checkpointing or by a compiler."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["is_recomputing", "snapshot"]


def is_recomputing() -> bool:
    """Is this forward pass run inside a backward pass, to recompute activations that were not kept?

    A layer whose buffers move with every training batch leaves them alone then: the first pass moved them.
    Both kinds of `torch.utils.checkpoint` are seen. False while a graph is compiled: what is recomputed there
    is the compiler's choice.

    >>> is_recomputing()
    False
    """
    # The engine's number of the running backward pass, -1 outside one; checkpointing itself asks this way.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def snapshot(buffer: Tensor) -> Tensor:
    """A buffer that is about to move, for a backward pass that needs the value from before.

    A compiler may compute again in the backward what it can from the buffer, which has moved by then: it gets
    a copy that it cannot make again. Elsewhere the buffer itself; what is computed from it is kept.

    >>> snapshot(torch.ones(2))
    tensor([1., 1.])
    """
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        copied: Tensor = _copy(buffer)
        return copied
    return buffer


# Compilers recompute only operations that they know to be cheap; this one they do not know.
# The schema is given: a function whose shapes are checked cannot be asked for it.
@torch.library.custom_op("trueup::copy", mutates_args=(), schema="(Tensor t) -> Tensor")
def _copy(t: Tensor) -> Tensor:
    return t.clone()


@_copy.register_fake
def _(t: Tensor) -> Tensor:
    return torch.empty_like(t)
