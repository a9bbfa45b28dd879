"""A small pre-activation residual net: normalise and activate before each convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn


def bn_relu(channels: int) -> nn.Module:
    """Batch normalisation and a ReLU."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


class _Block(nn.Module):
    def __init__(
        self, in_channels: int, channels: int, stride: int, norm_act: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.norm_act1 = norm_act(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm_act2 = norm_act(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        same = stride == 1 and in_channels == channels
        self.shortcut = None if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_act1(x)
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return cast(Tensor, shortcut + self.conv2(self.norm_act2(self.conv1(y))))


class PreActResNet(nn.Module):
    """Three stages of residual blocks; the image is halved before the second and third, the width doubled.

    He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, 2016 (arXiv 1603.05027).

    Args:
        in_channels: of the image.
        depth: 6n + 2 layers, n blocks a stage: 8, 14, 20, ...
        width: channels of the first stage.
        classes: outputs.
        norm_act: makes normalisation and activation for a number of channels, as one module.

    Raises:
        ValueError: another depth.

    >>> import torch
    >>> PreActResNet(1, 8, 16, 10)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        in_channels: int,
        depth: int,
        width: int,
        classes: int,
        norm_act: Callable[[int], nn.Module] = bn_relu,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise ValueError(f"depth must be 6n + 2, such as 8, 14 or 20; got {depth}")
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        channels = width
        for stage in range(3):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(_Block(channels, width * 2**stage, stride, norm_act))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*layers)
        self.norm_act = norm_act(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        features: Tensor = self.norm_act(self.blocks(self.stem(images)))
        return cast(Tensor, self.head(features.mean((2, 3))))
