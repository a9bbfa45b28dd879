"""An optimizer driven by given gradients: what exact claims about optimizers are computed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

Make: TypeAlias = Callable[..., Optimizer]
"""``make([parameter], lr)`` builds an optimizer."""


def iterates(
    make: Make, start: Tensor, lr: float, gradient: Callable[[Tensor, int], Tensor], steps: int
) -> Iterator[Tensor]:
    """Yield a parameter after each step.

    Args:
        gradient: ``gradient(parameter, step)``, with steps counted from 1.
    """
    parameter = nn.Parameter(start.clone())
    optimizer = make([parameter], lr)
    for step in range(1, steps + 1):
        parameter.grad = gradient(parameter, step)
        optimizer.step()
        yield parameter.detach().clone()
