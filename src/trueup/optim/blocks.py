"""The eager CPU route: walk tensors in blocks that stay in cache.

An elementwise optimizer written with whole-tensor operations streams every tensor from memory once per
operation and allocates temporaries as large as the model. Walked in blocks, the same operations find their
operands in cache, and the only temporaries are a block long. This module holds what every such walk needs:
which tensors may take it, a common memory order for a parameter with its gradient and state, and the blocks
themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

#: Elements a block. Four float32 streams and a scratch block fit a 2 MiB second-level cache.
BLOCK = 1 << 16

Tile = tuple[slice, slice]


def takes_blocks(param: Tensor, foreach: bool | None) -> bool:
    """Whether `param` is stepped by the blocked route (else: by the branchless device route).

    `foreach` is the optimizer's argument: None chooses by device, True the device route, False the blocked
    one. Under `torch.compile`, and for tensor subclasses such as DTensor, it is always the device route:
    the blocked one reads values and addresses memory.
    """
    if torch.compiler.is_compiling() or is_traceable_wrapper_subclass(param):
        return False
    return param.device.type == "cpu" if foreach is None else not foreach


def in_memory_order(*tensors: Tensor) -> list[Tensor] | None:
    """Flat views of equally shaped tensors, in one common order of elements, dimension 0 outermost.

    None when there is no such order (a transposed or strided parameter, a gradient laid out otherwise than
    its parameter): such tensors take the device route, which does not care.

    >>> weight = torch.arange(8.0).reshape(1, 2, 2, 2).to(memory_format=torch.channels_last)
    >>> in_memory_order(weight)[0]
    tensor([0., 4., 1., 5., 2., 6., 3., 7.])
    >>> in_memory_order(weight, torch.zeros(1, 2, 2, 2)) is None
    True
    """
    formats = {
        4: (torch.contiguous_format, torch.channels_last),
        5: (torch.contiguous_format, torch.channels_last_3d),
    }
    for memory_format in formats.get(tensors[0].dim(), (torch.contiguous_format,)):
        if all(tensor.is_contiguous(memory_format=memory_format) for tensor in tensors):
            return [tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors]
    return None


def tiles(rows: int, length: int, block: int | None = None) -> Iterator[list[Tile]]:
    """Cut a (rows, length) matrix into tiles of at most `block` elements (default `BLOCK`).

    Each item is the list of tiles that together hold some whole rows: one tile of several rows, or, where a
    row is longer than a block, the pieces of one row.

    >>> list(tiles(3, 2, block=4))
    [[(slice(0, 2, None), slice(0, 2, None))], [(slice(2, 3, None), slice(0, 2, None))]]
    >>> list(tiles(1, 5, block=4))
    [[(slice(0, 1, None), slice(0, 4, None)), (slice(0, 1, None), slice(4, 5, None))]]
    """
    block = block or BLOCK
    if rows * length == 0:
        return
    step = max(1, block // length)
    for row in range(0, rows, step):
        here = slice(row, min(row + step, rows))
        yield [(here, slice(col, min(col + block, length))) for col in range(0, length, block)]


def blocks(size: int) -> Iterator[slice]:
    """Cut `size` elements into blocks of at most `BLOCK`."""
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))
