"""A small pre-activation residual net: normalize and activate before each convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn


def bn_relu(channels: int) -> nn.Module:
    """Build batch normalization and a ReLU."""
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
    """A pre-activation ResNet for small images: three stages of residual blocks.

    The second and third stage halve the image and double the width.

    Args:
        in_channels: channels of the image.
        depth: number of layers, `6 n + 2` with n blocks per stage: 8, 14, 20, ...
        width: channels of the first stage.
        classes: number of logits.
        norm_act: `norm_act(channels)` makes normalization and activation as one module.

    Raises:
        ValueError: if the depth is not `6 n + 2` with n of at least 1.

    Source: He, Zhang, Ren, Sun 2016, Identity Mappings in Deep Residual Networks, arXiv 1603.05027.

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
        """Return the logits."""
        features: Tensor = self.norm_act(self.blocks(self.stem(images)))
        return cast(Tensor, self.head(features.mean((2, 3))))
