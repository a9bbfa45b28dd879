"""Step CPU tensors in chunks that stay in cache.

An elementwise optimizer written with whole-tensor operations streams every tensor from memory once per
operation and allocates temporaries as large as the model. In chunks, the same operations find their operands
in cache, and the temporaries are one chunk and one number per row. This module holds what a single-tensor
route needs: which parameters may take it, a common memory order for a parameter with its gradient and state,
the chunks, and scratch memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from trueup._numerics.upcasting import upcast_dtype

#: Elements per chunk: enough to hide the cost of a call, few enough for one core's share of the cache.
CHUNK_SIZE = 1 << 19

# The memory formats, by number of dimensions, in which dimension 0 is outermost and its rows are dense.
_FORMATS = {
    4: (torch.contiguous_format, torch.channels_last),
    5: (torch.contiguous_format, torch.channels_last_3d),
}


def uses_single_tensor_route(param: Tensor, foreach: bool | None) -> bool:
    """Return whether `param` takes the single-tensor route, and not the foreach route.

    `foreach` is the optimizer's argument: True means the foreach route everywhere. Accelerators always take
    it, and so do tensor subclasses such as DTensor: the single-tensor route reads values and uses addresses.
    """
    if is_traceable_wrapper_subclass(param):
        return False
    return param.device.type == "cpu" and not foreach


def in_memory_order(*tensors: Tensor) -> list[Tensor] | None:
    """Return flat views of equally shaped tensors in one common order of elements, dimension 0 outermost.

    Return None if there is no such order, as for a transposed or strided parameter or a gradient whose layout
    is not its parameter's. Such tensors take the foreach route, which accepts any layout.

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


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split flat tensors of one size, in step, into chunks of at most `CHUNK_SIZE` elements."""
    if tensors[0].numel() <= CHUNK_SIZE:  # most are: Tensor.split costs as much as a small kernel
        return iter([tensors])
    return zip(*(tensor.split(CHUNK_SIZE) for tensor in tensors))


def row_chunks(tensor: Tensor, rows: int) -> list[list[Tensor]]:
    """Split a flat tensor, seen as (rows, length), into 2-d chunks of at most `CHUNK_SIZE` elements.

    Each inner list holds whole rows: one chunk of several rows, or the chunks of one row that is longer.

    >>> parts = row_chunks(torch.zeros(3 * CHUNK_SIZE), rows=6)
    >>> [len(part) for part in parts], parts[0][0].shape == (2, CHUNK_SIZE // 2)
    ([1, 1, 1], True)
    >>> [len(part) for part in row_chunks(torch.zeros(3 * CHUNK_SIZE), rows=1)]
    [3]
    """
    matrix = tensor.view(rows, -1)
    length = matrix.size(1)
    if tensor.numel() <= CHUNK_SIZE:
        return [[matrix]]
    if length <= CHUNK_SIZE:
        return [[chunk] for chunk in matrix.split(CHUNK_SIZE // length)]
    return [list(row.split(CHUNK_SIZE, dim=1)) for row in matrix.split(1)]


class Scratch:
    """Memory that one step reuses for every chunk; fresh memory would cost page faults each time."""

    def __init__(self) -> None:
        self._flat: dict[tuple[str, torch.dtype], Tensor] = {}
        self._views: dict[tuple[str, torch.dtype, torch.Size], Tensor] = {}

    def like(self, chunk: Tensor, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return uninitialised memory of the chunk's shape, the same memory for the same name and dtype.

        `dtype` is the chunk's by default.
        """
        dtype = dtype or chunk.dtype
        key = name, dtype, chunk.shape
        if key not in self._views:
            if (name, dtype) not in self._flat:
                self._flat[name, dtype] = chunk.new_empty(CHUNK_SIZE, dtype=dtype)
            self._views[key] = self._flat[name, dtype][: chunk.numel()].view(chunk.shape)
        return self._views[key]

    def upcast(self, chunk: Tensor, name: str) -> Tensor:
        """Return the chunk itself, or a float32 copy of it if it is of a half type."""
        dtype = upcast_dtype(chunk.dtype)
        return chunk if chunk.dtype == dtype else self.like(chunk, name, dtype).copy_(chunk)
