"""Norms of baseline and control arms; none of them is a method of this library."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GainAndBias(nn.Module):
    """The gain and bias that a norm learns per feature, without the normalization.

    Args:
        features: size of the input's last dimension.

    >>> GainAndBias(3)(torch.tensor([1.0, 2.0, 3.0])).tolist()
    [1.0, 2.0, 3.0]
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

    def forward(self, input: Tensor) -> Tensor:
        return input * self.gain + self.bias


class GroupScaling(GainAndBias):
    """The root mean square norm of each group of features, with gain and bias.

    Args:
        features: size of the input's last dimension.
        groups: number of groups; divides `features`.

    >>> GroupScaling(4, groups=2)(torch.tensor([3.0, 3.0, -5.0, 5.0])).round().tolist()
    [1.0, 1.0, -1.0, 1.0]
    """

    def __init__(self, features: int, groups: int) -> None:
        super().__init__(features)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        parts = input.unflatten(-1, (self.groups, -1))
        return super().forward(F.rms_norm(parts, parts.shape[-1:], eps=1e-5).flatten(-2))


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch normalization over all tokens of `(batch, time, features)`.

    >>> TokenBatchNorm(3)(torch.randn(2, 5, 3)).shape
    torch.Size([2, 5, 3])
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(0, 1)).view_as(input)
