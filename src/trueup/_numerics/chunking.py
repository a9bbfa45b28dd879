"""Process a few samples at a time on a CPU, so that temporaries stay in its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["chunk_size", "sample_chunks", "write"]


def chunk_size(x: Tensor, elements: int, total: int) -> int:
    """Return how many of `total` items, of `elements` values each, to process at once.

    On a CPU, as many as stay in its cache. Elsewhere all of them, since launches cost more than memory.
    """
    if not x.is_cpu or torch.compiler.is_compiling():
        return total
    return max(2**17 // max(elements, 1), 1)


def sample_chunks(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split `x` and the other tensors along dimension 0 into matching chunks of a few samples."""
    samples = max(x.shape[0], 1)
    size = chunk_size(x, x.numel() // samples, samples)
    if size >= samples:
        return iter([(x, *others)])
    return zip(*(t.split(size) for t in (x, *others)), strict=True)


def write(out: Tensor, operation: Callable[..., Tensor], *operands: Tensor) -> None:
    """Write the operation's result into `out`, which may have a lower precision than the operands."""
    # Compilers accept no strided `out=`, and on a CPU rounding into it takes three times as long as a copy.
    if out.dtype == operands[0].dtype and not torch.compiler.is_compiling():
        operation(*operands, out=out)
    else:
        out.copy_(operation(*operands))
