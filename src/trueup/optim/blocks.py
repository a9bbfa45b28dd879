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

#: Elements a block: large enough to hide the cost of a call, small enough for a core's share of the cache.
BLOCK = 1 << 18

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


def blocks(rows: int, length: int = 1) -> Iterator[slice]:
    """Cut `rows` rows of `length` elements into slices of at most `BLOCK` elements, but at least a row.

    >>> list(blocks(5, BLOCK // 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, BLOCK // max(1, length))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
