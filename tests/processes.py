"""Run a function in several processes that can talk to each other, as distributed training does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def in_processes(function: Callable[..., Any], *args: Any, folder: Path, number: int = 2) -> list[Any]:
    """Return the results of `function(rank, *args)` of each of `number` gloo processes, in rank order.

    The function is a module's own, since processes are spawned. An assertion that fails in one fails here.
    """
    spawn(_run, (number, str(folder), function, args), nprocs=number)
    return [torch.load(folder / f"returned-{rank}.pt", weights_only=False) for rank in range(number)]


def _run(rank: int, number: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=number)
    torch.save(function(rank, *args), f"{folder}/returned-{rank}.pt")
    dist.destroy_process_group()
    # Whoever still holds the group keeps gloo's threads alive. One that asks for Python's lock while Python
    # goes away is unwound by force, through code that may not throw: now and then that aborts the process.
    os._exit(0)
