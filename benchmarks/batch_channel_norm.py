"""Batch-channel normalisation against its equation, operation by operation, and torch's batch norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import Row
from trueup.nn import BatchChannelNorm2d
from trueup.nn._batch_channel_norm import batch_then_group_norm


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    images, directions = torch.randn(2, 32, 64, 56, 56)
    images.requires_grad_()
    what = "BatchChannelNorm2d forward + backward, 32x64x56x56, 32 groups"
    layer = BatchChannelNorm2d(64, num_groups=32)
    ours = training_step(layer, images, directions)
    peers = {
        "its equation, naively": (partial(naively, layer), 0.2),
        "nn.BatchNorm2d": (nn.BatchNorm2d(64), 0.9),
    }
    for peer, (theirs, bound) in peers.items():
        yield Row(what, peer, bound, ours, training_step(theirs, images, directions))


def naively(layer: BatchChannelNorm2d, x: Tensor) -> Tensor:
    """Apply the paper's equation, one operation after the other."""
    values = x.flatten(2)
    mean, var = values.mean((0, 2)), values.var((0, 2), correction=0)
    parameters = (layer.bn.weight, layer.bn.bias, layer.weight.flatten(), layer.bias.flatten())
    y = batch_then_group_norm(values, mean, var, parameters, layer.num_groups, layer.eps, layer.batch_eps)
    return y.view_as(x)


def training_step(layer: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Callable[[], None]:
    def run() -> None:
        x.grad = None
        layer(x).backward(direction)

    return run
