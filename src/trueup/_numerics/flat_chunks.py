"""The eager CPU route: walk tensors in blocks that stay in cache.

An elementwise optimizer written with whole-tensor operations streams every tensor from memory once per
operation and allocates temporaries as large as the model. Walked in blocks, the same operations find their
operands in cache, and the only temporaries are blocks and one number a row. This module holds what every
such walk needs: which tensors may take it, a common memory order for a parameter with its gradient and
state, and the blocks themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from trueup._numerics.upcasting import upcast_dtype

#: Elements a block: large enough to hide the cost of a call, small enough for a core's share of the cache.
BLOCK = 1 << 19

# The memory formats, by number of dimensions, in which dimension 0 is outermost and its rows are dense.
_FORMATS = {
    4: (torch.contiguous_format, torch.channels_last),
    5: (torch.contiguous_format, torch.channels_last_3d),
}


def uses_single_tensor_route(param: Tensor, foreach: bool | None) -> bool:
    """Whether `param` is stepped by the blocked route (else: by the branchless device route).

    `foreach` is the optimizer's argument: True is the device route, everywhere. Accelerators always take it,
    and so do tensor subclasses such as DTensor: the blocked one reads values and addresses memory.
    """
    if is_traceable_wrapper_subclass(param):
        return False
    return param.device.type == "cpu" and not foreach


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
    if tensors[0].dim() == 1 and all(tensor.is_contiguous() for tensor in tensors):
        return list(tensors)
    for memory_format in _FORMATS.get(tensors[0].dim(), (torch.contiguous_format,)):
        if all(tensor.is_contiguous(memory_format=memory_format) for tensor in tensors):
            return [tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors]
    return None


def split(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut flat tensors of one size, side by side, into blocks of at most `BLOCK` elements."""
    if tensors[0].numel() <= BLOCK:  # most are: Tensor.split costs as much as a small kernel
        return iter([tensors])
    return zip(*(tensor.split(BLOCK) for tensor in tensors))


def row_chunks(tensor: Tensor, rows: int) -> list[list[Tensor]]:
    """Cut a flat tensor, seen as (rows, length), into 2-d blocks of at most `BLOCK` elements.

    Each inner list holds whole rows: several in one block, or the pieces of one that is longer than that.

    >>> blocks = row_chunks(torch.zeros(3 * BLOCK), rows=6)
    >>> [len(pieces) for pieces in blocks], blocks[0][0].shape == (2, BLOCK // 2)
    ([1, 1, 1], True)
    >>> [len(pieces) for pieces in row_chunks(torch.zeros(3 * BLOCK), rows=1)]
    [3]
    """
    matrix = tensor.view(rows, -1)
    length = matrix.size(1)
    if tensor.numel() <= BLOCK:
        return [[matrix]]
    if length <= BLOCK:
        return [[block] for block in matrix.split(BLOCK // length)]
    return [list(row.split(BLOCK, dim=1)) for row in matrix.split(1)]


class Scratch:
    """Blocks of memory that a step uses again for every tile; fresh ones would cost page faults each time."""

    def __init__(self) -> None:
        self._flat: dict[tuple[str, torch.dtype], Tensor] = {}
        self._views: dict[tuple[str, torch.dtype, torch.Size], Tensor] = {}

    def like(self, block: Tensor, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialised memory of this block's shape and dtype (or another), the same for the same name."""
        dtype = dtype or block.dtype
        key = name, dtype, block.shape
        if key not in self._views:
            if (name, dtype) not in self._flat:
                self._flat[name, dtype] = block.new_empty(BLOCK, dtype=dtype)
            self._views[key] = self._flat[name, dtype][: block.numel()].view(block.shape)
        return self._views[key]

    def upcast(self, block: Tensor, name: str) -> Tensor:
        """The block itself, or a copy in float32 where it is of a half type."""
        dtype = upcast_dtype(block.dtype)
        return block if block.dtype == dtype else self.like(block, name, dtype).copy_(block)
