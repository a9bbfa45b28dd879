"""The residual nets of He et al. 2015 for 32x32 images: 6n + 2 layers, widths 16, 32, 64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, sub-sampled and zero-padded where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = norm(channels)
        self.stride, self.extra = stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(y + nn.functional.pad(shortcut, (0, 0, 0, 0, 0, self.extra)))


def cifar_resnet(depth: int, classes: int = 10, norm: Norm = nn.BatchNorm2d) -> nn.Sequential:
    """ResNet-20, 32, 44, 56, ... for (batch, 3, 32, 32) images.

    Raises:
        ValueError: if ``depth`` is not 6n + 2.

    >>> sum(p.numel() for p in cifar_resnet(44).parameters())
    658586
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (20, 32, 44, 56, ...), got {depth}")
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), norm(16), nn.ReLU()]
    channels = 16
    for width in (16, 32, 64):
        for i in range((depth - 2) // 6):
            layers.append(_Block(channels, width, 2 if i == 0 and width > 16 else 1, norm))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
