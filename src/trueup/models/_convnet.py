"""A small convolutional net for 8x8 to 32x32 images."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def convnet(
    in_channels: int, widths: tuple[int, ...], classes: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> nn.Sequential:
    """3x3 convolution - norm - ReLU for each width, halving the image between, then mean pool and classify.

    >>> import torch
    >>> convnet(1, (16, 32), 10)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        if i:
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), norm(width), nn.ReLU()]
        in_channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, classes))
