"""A list of named tuples that prints as an aligned table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

R = TypeVar("R", bound=NamedTuple)


class Table(list[R]):
    """A list of named tuples of one type, printed with one column per field.

    >>> class Layer(NamedTuple):
    ...     name: str
    ...     share: float
    >>> print(Table([Layer("stem", 0.5), Layer("blocks.0", 0.125)]))
    name      share
    stem      0.5
    blocks.0  0.125
    """

    def __str__(self) -> str:
        if not self:
            return "(no rows)"
        lines = [self[0]._fields, *([_text(value) for value in row] for row in self)]
        return "\n".join(_line(line, [max(map(len, column)) for column in zip(*lines)]) for line in lines)


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _line(cells: Iterable[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip()
