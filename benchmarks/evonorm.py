"""EvoNorm against its equation in composite operations, and against batch normalisation with an activation.

Channels-last input is processed without a copy: its peer is the same layer on contiguous input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Row
from trueup._numerics.per_channel import per_channel_view
from trueup.nn import EvoNorm2dB0, EvoNorm2dS0
from trueup.nn._evonorm import PlanB, PlanS, _evonorm_b, _evonorm_s


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    images, directions = torch.randn(2, 32, 64, 56, 56)
    images.requires_grad_()

    def step(
        layer: Callable[[Tensor], Tensor], x: Tensor = images, direction: Tensor = directions
    ) -> Callable[[], None]:
        def run() -> None:
            x.grad = None
            layer(x).backward(direction)

        return run

    pair = "nn.BatchNorm2d + SiLU"
    s0, b0 = EvoNorm2dS0(64), EvoNorm2dB0(64)
    what = "EvoNorm2dS0 forward + backward, 32x64x56x56, 32 groups"
    yield Row(what, "composite operations", 0.35, step(s0), step(lambda x: composite_s0(s0, x)))
    yield Row(what, pair, 1.6, step(s0), step(bn_silu()))
    yield Row(f"{what}, compiled", pair, 0.95, step(torch.compile(s0, fullgraph=True)), step(bn_silu()))
    what = "EvoNorm2dB0 forward + backward, 32x64x56x56"
    yield Row(what, "composite operations", 0.25, step(b0), step(lambda x: composite_b0(b0, x)))
    yield Row(what, pair, 2.1, step(b0), step(bn_silu()))

    last = [t.detach().contiguous(memory_format=torch.channels_last) for t in (images, directions)]
    last[0].requires_grad_()
    for name, layer in (("S0", s0), ("B0", b0)):
        what = f"EvoNorm2d{name} forward + backward, 32x64x56x56, channels last"
        yield Row(what, "contiguous", 1.3, step(layer, *last), step(layer))


def bn_silu() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(64), nn.SiLU())


def composite_s0(layer: EvoNorm2dS0, x: Tensor) -> Tensor:
    plan = PlanS("S0", layer.groups, layer.eps, F.silu)
    return _evonorm_s(per_channel_view(x), plan, layer.weight, layer.bias, layer.v).view_as(x)


def composite_b0(layer: EvoNorm2dB0, x: Tensor) -> Tensor:
    plan = PlanB("B0", layer.eps, None)
    y, _ = _evonorm_b(per_channel_view(x), plan, None, layer.weight, layer.bias, layer.v)
    return y.view_as(x)
