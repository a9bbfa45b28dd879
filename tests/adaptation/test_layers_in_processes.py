"""Two processes with parts of a batch are one process with the whole: state, results and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from processes import in_processes
from trueup.adaptation import AlphaBatchNorm2d, UnMixTNS2d

CUTS = [3, 1]


def example() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a trained batch norm, a batch, and a direction for its gradient."""
    torch.manual_seed(5)
    norm = nn.BatchNorm2d(3, dtype=torch.float64).eval()
    norm.running_mean.uniform_(0.5, 2)
    norm.running_var.uniform_(0.5, 2)
    x, direction = torch.randn(2, 4, 3, 3, 2, dtype=torch.float64)
    return norm, x, direction


def alpha(group: Any) -> nn.Module:
    return AlphaBatchNorm2d.from_module(example()[0], prior_strength=2, unbiased=True, process_group=group)


def unmix(group: Any) -> nn.Module:
    return UnMixTNS2d.from_module(example()[0], num_components=4, process_group=group)


def share(rank: int) -> dict[str, Any]:
    """Run one process's part of the batch through both layers, then a batch of the first process alone."""
    _, x, direction = example()
    part, whole_or_nothing = x.split(CUTS)[rank].clone().requires_grad_(), x if rank == 0 else x[:0]
    found: dict[str, Any] = {}
    for name, build in (("alpha", alpha), ("unmix", unmix)):
        layer = build(dist.group.WORLD)
        y = layer(part)
        (grad,) = torch.autograd.grad(y, part, direction.split(CUTS)[rank])
        found[name] = y.detach(), grad, [*layer.buffers()]
        by_name = build("world")
        by_name(part)
        found[f"{name} by name"] = [*by_name.buffers()]
        layer = build(dist.group.WORLD)
        found[f"{name} alone"] = layer(whole_or_nothing).detach(), [*layer.buffers()]
    return found


def test_two_processes_are_one_on_the_joined_batch(tmp_path: Path) -> None:
    processes = in_processes(share, folder=tmp_path)
    _, x, direction = example()
    x.requires_grad_()
    for name, build in (("alpha", alpha), ("unmix", unmix)):
        layer = build(None)
        y = layer(x)
        (grad,) = torch.autograd.grad(y, x, direction)
        ys, grads, buffers = zip(*(found[name] for found in processes), strict=True)
        torch.testing.assert_close(torch.cat(ys), y.detach())
        torch.testing.assert_close(torch.cat(grads), grad)
        torch.testing.assert_close(processes[0][f"{name} alone"][0], y.detach())
        for found, own in zip(processes, buffers, strict=True):
            for other in (own, found[f"{name} by name"], found[f"{name} alone"][1]):
                torch.testing.assert_close(other, [*layer.buffers()])
