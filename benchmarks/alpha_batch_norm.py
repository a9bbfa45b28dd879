"""AlphaBatchNorm against torch's batch norm in training mode, which takes the batch's statistics too."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.batch_channel_norm import training_step
from benchmarks.harness import Row
from trueup.adaptation import AlphaBatchNorm2d


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    images, directions = torch.randn(2, 64, 64, 56, 56)
    for samples, peer in ((64, "nn.BatchNorm2d, training mode"), (1, "nn.BatchNorm2d, training mode")):
        batch = images[:samples].clone()
        ours, theirs = AlphaBatchNorm2d(64).eval(), nn.BatchNorm2d(64)
        with torch.no_grad():
            what = f"AlphaBatchNorm2d forward, {samples}x64x56x56"
            yield Row(what, peer, 1.5, partial(ours, batch), partial(theirs, batch))
    images.requires_grad_()
    what = "AlphaBatchNorm2d forward + backward, 64x64x56x56"
    ours, theirs = AlphaBatchNorm2d(64), nn.BatchNorm2d(64)
    yield Row(
        what,
        "nn.BatchNorm2d, training mode",
        1.3,
        training_step(ours, images, directions),
        training_step(theirs, images, directions),
    )
