"""Is this forward pass activation checkpointing's second run? Statistics must not move twice for a batch."""

from __future__ import annotations

import torch

__all__ = ["recomputing"]


def recomputing() -> bool:
    """Is this forward pass run inside a backward pass, to recompute activations that were not kept?

    A layer whose buffers move with every training batch leaves them alone then: the first pass moved them.
    Both kinds of `torch.utils.checkpoint` are seen. False while a graph is compiled: what is recomputed there
    is the compiler's choice.

    >>> recomputing()
    False
    """
    # The engine's number of the running backward pass, -1 outside one; checkpointing itself asks this way.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
