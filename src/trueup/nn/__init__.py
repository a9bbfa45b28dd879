"""Layers, each used as its counterpart in `torch.nn`, and `convert`, which puts them into a model."""

from trueup.nn.bn_only import (
    NormAffine,
    freeze_all_but_norm_affine,
    norm_affine_report,
    random_parameter_mask,
    reinit_norm_affine,
    train_masked,
    train_only,
)
from trueup.nn.convert import convert, convert_ghost_batchnorm
from trueup.nn.ghost_batch_norm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    ghost_batch_norm,
)
from trueup.nn.parametrize_weights import bake, parametrize_weights
from trueup.nn.weight_standardization import WeightStandardization, standardize_weight

__all__ = [
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "NormAffine",
    "WeightStandardization",
    "bake",
    "convert",
    "convert_ghost_batchnorm",
    "freeze_all_but_norm_affine",
    "ghost_batch_norm",
    "norm_affine_report",
    "parametrize_weights",
    "random_parameter_mask",
    "reinit_norm_affine",
    "standardize_weight",
    "train_masked",
    "train_only",
]
