"""Ghost batch normalisation against its equation, and torch's batch norm, whole and in a loop over chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import Row
from trueup.nn import GhostBatchNorm1d, GhostBatchNorm2d
from trueup.nn._ghost_batch_norm import normalize_ghost_batches


def rows() -> Iterator[Row]:
    torch.manual_seed(0)

    images, directions = torch.randn(2, 32, 64, 56, 56)
    images.requires_grad_()
    layer = GhostBatchNorm2d(64, ghost_batch_size=8)
    what = "GhostBatchNorm2d forward + backward, 32x64x56x56, ghost 8"
    peers = {
        "nn.BatchNorm2d": (nn.BatchNorm2d(64), 0.85),
        "nn.BatchNorm2d over chunks": (over_chunks(nn.BatchNorm2d(64), 8), 0.75),
        "its equation, naively": (partial(naively, layer), 0.25),
    }
    ours = training_step(layer, images, directions)
    for peer, (theirs, bound) in peers.items():
        yield Row(what, peer, bound, ours, training_step(theirs, images, directions))

    features, directions = torch.randn(2, 4096, 512)
    features.requires_grad_()
    yield Row(
        what="GhostBatchNorm1d forward + backward, 4096x512, ghost 32",
        peer="nn.BatchNorm1d over chunks",
        bound=0.85,
        ours=training_step(GhostBatchNorm1d(512, ghost_batch_size=32), features, directions),
        theirs=training_step(over_chunks(nn.BatchNorm1d(512), 32), features, directions),
    )


def naively(layer: GhostBatchNorm2d, x: Tensor) -> Tensor:
    """Apply the paper's equation, one operation after the other."""
    ghosts = x.flatten(2).unflatten(0, (-1, layer.ghost_batch_size))
    return normalize_ghost_batches(ghosts, layer.weight, layer.bias, layer.eps)[0].view_as(x)


def over_chunks(layer: nn.Module, ghost_batch_size: int) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat([layer(chunk) for chunk in x.split(ghost_batch_size)])


def training_step(layer: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Callable[[], None]:
    def run() -> None:
        x.grad = None
        layer(x).backward(direction)

    return run
