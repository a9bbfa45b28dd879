"""A small convolutional net for 8x8 to 32x32 images."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def convnet(
    in_channels: int,
    widths: tuple[int, ...],
    classes: int,
    norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
    *,
    convs_per_width: int = 1,
    bias: bool = False,
) -> nn.Sequential:
    """Stack 3x3 convolution - norm - ReLU for each width; halve the image between widths, then classify.

    Args:
        in_channels: channels of the images.
        widths: channels of the convolutions; a max pool halves the image before all but the first.
        classes: number of logits, which a linear layer computes from the mean over positions.
        norm: `norm(channels)` makes a normalization layer; `None` leaves it out.
        convs_per_width: convolutions, each with norm and ReLU, per width.
        bias: give the convolutions a bias.

    >>> import torch
    >>> convnet(1, (16, 32), 10)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        if i:
            layers.append(nn.MaxPool2d(2))
        for _ in range(convs_per_width):
            layers.append(nn.Conv2d(in_channels, width, 3, padding=1, bias=bias))
            layers += [nn.ReLU()] if norm is None else [norm(width), nn.ReLU()]
            in_channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, classes))
