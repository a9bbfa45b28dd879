"""Time two callables against each other on a machine that is not quiet.

Absolute times drift with neighbours, clock speed and the allocator's mood; what lasts is a ratio between two
calls made one right after the other. So a `Row` is timed in rounds: each round runs ours and theirs, in an
order that flips every other round, and gives one ratio. The row's figure is the median of those ratios with
its quartiles, and it holds when the median is within the bound.

What is not a ratio of two times (milliseconds a cell, seconds a report, megabytes) is a `Measured`: the
benchmark measures it itself and the harness only compares and prints.

A benchmark module exposes `rows()`, a generator of either: it is advanced only when the row before is
finished and forgotten, so the memory of one row is free when the next is built.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


@dataclass
class Row:
    """One comparison: the time of `ours()` over the time of `theirs()` must be at most `bound`."""

    what: str
    peer: str
    bound: float
    ours: Callable[[], object]
    theirs: Callable[[], object]


@dataclass
class Measured:
    """One figure that is no ratio of times, at most `bound` (at least, where more is better)."""

    what: str
    peer: str
    value: float
    unit: str
    bound: float
    at_least: bool = False


@dataclass(frozen=True)
class Result:
    """One line of the table. Times in milliseconds; None where a figure does not apply."""

    what: str
    peer: str
    figure: float
    unit: str
    bound: float
    holds: bool
    at_least: bool = False
    ours_ms: float | None = None
    theirs_ms: float | None = None
    quartiles: tuple[float, float] | None = None
    rounds: int | None = None


def run(rows: Iterator[Row | Measured], *, rounds: int = 15, threads: int = 1) -> Iterator[Result]:
    """Yield the result of each row as it is finished, with `threads` torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        while (row := next(rows, None)) is not None:
            yield _judge(row) if isinstance(row, Measured) else _time(row, rounds)
            del row
            gc.collect()
    finally:
        torch.set_num_threads(before)


def _judge(row: Measured) -> Result:
    holds = row.value >= row.bound if row.at_least else row.value <= row.bound
    return Result(row.what, row.peer, row.value, row.unit, row.bound, holds, row.at_least)


def _time(row: Row, rounds: int) -> Result:
    # Warm both up, and learn how often a short call must be repeated for the clock to see 5 ms.
    repeats = 1
    for call in (row.ours, row.theirs):
        call()
        repeats = max(repeats, min(1000, int(5e-3 / _seconds(call, 1)) + 1))
    ours, theirs = [], []
    for number in range(rounds):
        if number % 2 == 0:
            ours.append(_seconds(row.ours, repeats))
            theirs.append(_seconds(row.theirs, repeats))
        else:
            theirs.append(_seconds(row.theirs, repeats))
            ours.append(_seconds(row.ours, repeats))
    ratios = [mine / peer for mine, peer in zip(ours, theirs)]
    ratio = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4) if rounds > 1 else (ratio, ratio, ratio)
    return Result(
        row.what,
        row.peer,
        ratio,
        "x",
        row.bound,
        ratio <= row.bound,
        ours_ms=1e3 * statistics.median(ours),
        theirs_ms=1e3 * statistics.median(theirs),
        quartiles=(low, high),
        rounds=rounds,
    )


def _seconds(call: Callable[[], object], repeats: int) -> float:
    # A CUDA device works on after the call: wait for it, before and after.
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return max((time.perf_counter() - start) / repeats, 1e-9)
