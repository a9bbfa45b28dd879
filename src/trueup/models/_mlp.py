"""A multi-layer perceptron with normalization."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def mlp(
    in_features: int, hidden: tuple[int, ...], classes: int, norm: Callable[[int], nn.Module] = nn.BatchNorm1d
) -> nn.Sequential:
    """Flatten the input, stack linear - norm - ReLU for each hidden width, then classify.

    >>> import torch
    >>> mlp(64, (32, 32), 10)(torch.zeros(5, 8, 8)).shape
    torch.Size([5, 10])
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(in_features, width, bias=False), norm(width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, classes))
