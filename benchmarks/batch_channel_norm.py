"""Batch-channel normalisation against the composed form of its authors, and torch's batch normalisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.harness import Row
from trueup.nn import BatchChannelNorm2d


class Composed(nn.Module):
    """Naively what the paper writes: batch norm, then a batch norm whose channels are samples' groups."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.bn = nn.BatchNorm2d(channels)
        self.weight = nn.Parameter(torch.ones(1, groups, 1))
        self.bias = nn.Parameter(torch.zeros(1, groups, 1))

    def forward(self, x: Tensor) -> Tensor:
        groups = self.bn(x).reshape(1, len(x) * self.groups, -1)
        normalized = torch.batch_norm(groups, None, None, None, None, True, 0.0, 1e-5, False)
        return (normalized.view(len(x), self.groups, -1) * self.weight + self.bias).view_as(x)


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    images, directions = torch.randn(2, 32, 64, 56, 56)
    images.requires_grad_()
    what = "BatchChannelNorm2d forward + backward, 32x64x56x56, 32 groups"
    ours = training_step(BatchChannelNorm2d(64, num_groups=32), images, directions)
    peers = {
        "the composed form, naively": (Composed(64, 32), 0.27),
        "nn.BatchNorm2d": (nn.BatchNorm2d(64), 0.9),
    }
    for peer, (layer, bound) in peers.items():
        theirs = training_step(layer, images, directions)
        yield Row(what=what, peer=peer, bound=bound, ours=ours, theirs=theirs)


def training_step(layer: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Callable[[], None]:
    def run() -> None:
        x.grad = None
        layer(x).backward(direction)

    return run
