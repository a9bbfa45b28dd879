"""Ghost batch normalisation against torch's batch normalisation, whole and in a loop over chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.harness import Row
from trueup.nn import GhostBatchNorm1d, GhostBatchNorm2d


def rows() -> Iterator[Row]:
    torch.manual_seed(0)

    images, directions = torch.randn(2, 32, 64, 56, 56)
    images.requires_grad_()
    ours = training_step(GhostBatchNorm2d(64, ghost_batch_size=8), images, directions)
    what = "GhostBatchNorm2d forward + backward, 32x64x56x56, ghost 8"
    yield Row(
        what=what,
        peer="nn.BatchNorm2d",
        bound=0.85,
        ours=ours,
        theirs=training_step(nn.BatchNorm2d(64), images, directions),
    )
    yield Row(
        what=what,
        peer="nn.BatchNorm2d over chunks",
        bound=0.75,
        ours=ours,
        theirs=training_step(over_chunks(nn.BatchNorm2d(64), 8), images, directions),
    )

    features, directions = torch.randn(2, 4096, 512)
    features.requires_grad_()
    yield Row(
        what="GhostBatchNorm1d forward + backward, 4096x512, ghost 32",
        peer="nn.BatchNorm1d over chunks",
        bound=0.85,
        ours=training_step(GhostBatchNorm1d(512, ghost_batch_size=32), features, directions),
        theirs=training_step(over_chunks(nn.BatchNorm1d(512), 32), features, directions),
    )


def over_chunks(layer: nn.Module, ghost_batch_size: int) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat([layer(chunk) for chunk in x.split(ghost_batch_size)])


def training_step(layer: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Callable[[], None]:
    def run() -> None:
        x.grad = None
        layer(x).backward(direction)

    return run
