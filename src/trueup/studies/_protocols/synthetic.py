"""Optimizers on synthetic problems, for exact claims: no data, no model, gradients in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Make: TypeAlias = Callable[..., Optimizer]
"""``make([parameter], lr)`` builds an optimizer."""

Gradient: TypeAlias = Callable[[Tensor, int], Tensor]
"""``gradient(parameter, step)``, with steps counted from 1."""


def iterates(make: Make, start: Tensor, lr: float, gradient: Gradient, steps: int) -> Iterator[Tensor]:
    """Yield the parameter after each step of an optimizer."""
    parameter = nn.Parameter(start.clone())
    optimizer = make([parameter], lr)
    for step in range(1, steps + 1):
        parameter.grad = gradient(parameter, step)
        optimizer.step()
        yield parameter.detach().clone()


def toward(target: Tensor) -> Gradient:
    """Return the gradient of f(w) = -cos(w, target), which is invariant to the scale of w."""
    return lambda w, _: torch.autograd.grad(-torch.cosine_similarity(w, target).sum(), w)[0]


def spike_progress(make: Make, seed: int, max_norm: float = math.inf) -> float:
    """Return how far the entries that spikes hit move in 300 steps, relative to the same without spikes.

    The gradients of a 30 x 30 weight are a constant plus noise, clipped at the global norm `max_norm`. From
    step 75 on, every 25th is a hundred times as large in the first five entries before it is clipped.
    """

    def moved(size: float) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        steady = 0.3 * torch.randn(30, 30, generator=generator)

        def gradient(weight: Tensor, step: int) -> Tensor:
            weight.grad = steady + torch.randn(30, 30, generator=generator)
            if step >= 75 and step % 25 == 0:
                weight.grad[0, :5] *= size
            nn.utils.clip_grad_norm_(weight, max_norm)
            return weight.grad

        *_, end = iterates(make, torch.zeros(30, 30), 1.0, gradient, 300)
        return end[0, :5].abs().mean()

    return float(moved(100) / moved(1))
