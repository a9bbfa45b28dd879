"""EvoNorm against the composed form, and against batch normalisation with the activation it replaces.

Channels-last input is worked on as it lies: its peer is the same layer on contiguous input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.harness import Row
from trueup.nn import EvoNorm2dB0, EvoNorm2dS0


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
    yield Row(what, "composed as in timm", 0.35, step(s0), step(lambda x: composed_s0(s0, x)))
    yield Row(what, pair, 1.6, step(s0), step(bn_silu()))
    yield Row(f"{what}, compiled", pair, 0.95, step(torch.compile(s0, fullgraph=True)), step(bn_silu()))
    what = "EvoNorm2dB0 forward + backward, 32x64x56x56"
    yield Row(what, "composed as in timm", 0.25, step(b0), step(lambda x: composed_b0(b0, x)))
    yield Row(what, pair, 2.1, step(b0), step(bn_silu()))

    last = [t.detach().contiguous(memory_format=torch.channels_last) for t in (images, directions)]
    last[0].requires_grad_()
    for name, layer in (("S0", s0), ("B0", b0)):
        what = f"EvoNorm2d{name} forward + backward, 32x64x56x56, channels last"
        yield Row(what, "contiguous", 1.3, step(layer, *last), step(layer))


def bn_silu() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(64), nn.SiLU())


def composed_s0(layer: EvoNorm2dS0, x: Tensor) -> Tensor:
    """The equation in the operations that timm uses: a variance over 3 axes, expanded, and a division."""
    grouped = x.reshape(len(x), layer.groups, -1, *x.shape[2:])
    var = grouped.var((2, 3, 4), unbiased=False, keepdim=True)
    std = (var + layer.eps).sqrt().expand(grouped.shape).reshape(x.shape)
    y = x * (x * layer.v.view(-1, 1, 1)).sigmoid() / std
    return y * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)


def composed_b0(layer: EvoNorm2dB0, x: Tensor) -> Tensor:
    """The same of B0, with the running variance."""
    var = x.var((0, 2, 3), unbiased=False)
    n = x.numel() / x.shape[1]
    with torch.no_grad():
        layer.running_var.lerp_(var * n / (n - 1), layer.momentum)
    left = (var + layer.eps).sqrt().view(-1, 1, 1).expand_as(x)
    std = (x.var((2, 3), unbiased=False, keepdim=True) + layer.eps).sqrt().expand_as(x)
    y = x / left.max(x * layer.v.view(-1, 1, 1) + std)
    return y * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
