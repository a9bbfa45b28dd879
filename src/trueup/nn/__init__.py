"""Layers, each used as its counterpart in `torch.nn`, and `convert`, which puts them into a model."""

from trueup.nn.convert import convert, convert_ghost_batchnorm
from trueup.nn.ghost_batch_norm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    ghost_batch_norm,
)

__all__ = [
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "convert",
    "convert_ghost_batchnorm",
    "ghost_batch_norm",
]
