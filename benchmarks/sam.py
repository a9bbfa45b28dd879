"""The cost of a sharpness-aware step beyond its two forward and backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.adamp import parameters, resnet50
from benchmarks.harness import Row
from trueup.optim import SAM


def rows() -> Iterator[Row]:
    plain = torch.optim.SGD(parameters(resnet50(), "aligned"), 0.0, momentum=0.9, foreach=True)
    own = torch.optim.SGD(parameters(resnet50(), "aligned"), 0.0, momentum=0.9, foreach=True)
    sam = SAM(own, 0.05)
    what = "SAM, ResNet-50: perturb and restore"
    yield Row(what, "SGD(foreach) step", 1.5, perturb_and_restore(sam), plain.step)


def perturb_and_restore(sam: SAM) -> Callable[[], None]:
    def run() -> None:
        sam.perturb()
        sam.restore()

    return run
