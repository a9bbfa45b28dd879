"""A residual net for small images: three segments of basic blocks, activation after the sum."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class CifarResNet(nn.Module):
    """A ResNet of `depth = 2 + 6 D` layers: D blocks per segment, with W, 2 W and 4 W channels.

    Convolutions have no bias; their weights and the classifier's are He-normal. Segments 2 and 3 halve the
    image. A shortcut is the identity, or a 1x1 convolution and a norm where the shape changes. Every
    activation is a module of its own, so that `trueup.nn.convert` can fuse it with the norm before it.

    Args:
        in_channels: channels of the images, whose height and width are at least 1.
        depth: number of layers: 8, 14, 20, ...
        width: channels W of the first segment.
        classes: number of logits.
        norm: `norm(channels)` makes a normalization layer.

    Raises:
        ValueError: if the depth is not `2 + 6 D` with D of at least 1.

    Source: He et al. 2016, arXiv 1512.03385, section 4.2, with projections instead of padded shortcuts.

    >>> import torch
    >>> CifarResNet(1, 8, 4, 10)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self, in_channels: int, depth: int, width: int, classes: int, norm: Norm = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"CifarResNet needs a depth of 2 + 6 D, such as 8, 14 or 20; got {depth}")
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = norm(width)
        self.relu = nn.ReLU()
        blocks: list[nn.Module] = []
        channels = width
        for segment in range(3):
            for i in range((depth - 2) // 6):
                stride = 2 if segment > 0 and i == 0 else 1
                blocks.append(_Block(channels, width * 2**segment, stride, norm))
                channels = width * 2**segment
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        features: Tensor = self.blocks(self.relu(self.bn(self.conv(x))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = norm(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = norm(channels)
        self.relu2 = nn.ReLU()
        if stride == 1 and in_channels == channels:
            self.shortcut: nn.Module = nn.Identity()
        else:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(residual + self.shortcut(x))
        return out
