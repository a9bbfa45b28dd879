"""Layers that replace those of `torch.nn`, and `convert`, which puts them into an existing model."""

from trueup.nn._adaptive_clip_grad import adaptive_clip_grad_
from trueup.nn._batch_channel_norm import (
    BatchChannelNorm1d,
    BatchChannelNorm2d,
    batch_channel_norm,
)
from trueup.nn._bn_only import (
    NormAffine,
    freeze_all_but_norm_affine,
    norm_affine_report,
    random_parameter_mask,
    reinit_norm_affine,
    train_masked,
    train_only,
)
from trueup.nn._convert import Conversion, convert, convert_ghost_batchnorm
from trueup.nn._estimated_batch_norm import EstimatedBatchNorm1d, EstimatedBatchNorm2d, estimated_batch_norm
from trueup.nn._evonorm import (
    EvoNorm2dB0,
    EvoNorm2dB1,
    EvoNorm2dB2,
    EvoNorm2dS0,
    EvoNorm2dS0a,
    EvoNorm2dS1,
    EvoNorm2dS1a,
    EvoNorm2dS2,
    EvoNorm2dS2a,
    evonorm_b,
    evonorm_s,
)
from trueup.nn._ghost_batch_norm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    ghost_batch_norm,
)
from trueup.nn._layer_norm_cells import LayerNormGRUCell, LayerNormLSTMCell, LayerNormRNNCell
from trueup.nn._layer_norm_rnn import LayerNormGRU, LayerNormLSTM, LayerNormRNN
from trueup.nn._parametrize_weights import bake, parametrize_weights
from trueup.nn._power_norm import PowerNorm1d, PowerNorm2d, power_norm
from trueup.nn._scaled_weight_standardization import (
    ScaledWeightStandardization,
    activation_gain,
    scaled_standardize_weight,
)
from trueup.nn._weight_compander import (
    WeightCompander,
    inverse_weight_compand,
    weight_compand,
    weight_compander_param_groups,
    weight_stats,
)
from trueup.nn._weight_standardization import WeightStandardization, standardize_weight

__all__ = [
    "BatchChannelNorm1d",
    "BatchChannelNorm2d",
    "Conversion",
    "EstimatedBatchNorm1d",
    "EstimatedBatchNorm2d",
    "EvoNorm2dB0",
    "EvoNorm2dB1",
    "EvoNorm2dB2",
    "EvoNorm2dS0",
    "EvoNorm2dS0a",
    "EvoNorm2dS1",
    "EvoNorm2dS1a",
    "EvoNorm2dS2",
    "EvoNorm2dS2a",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "LayerNormGRU",
    "LayerNormGRUCell",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "LayerNormRNN",
    "LayerNormRNNCell",
    "NormAffine",
    "PowerNorm1d",
    "PowerNorm2d",
    "ScaledWeightStandardization",
    "WeightCompander",
    "WeightStandardization",
    "activation_gain",
    "adaptive_clip_grad_",
    "bake",
    "batch_channel_norm",
    "convert",
    "convert_ghost_batchnorm",
    "estimated_batch_norm",
    "evonorm_b",
    "evonorm_s",
    "freeze_all_but_norm_affine",
    "ghost_batch_norm",
    "inverse_weight_compand",
    "norm_affine_report",
    "parametrize_weights",
    "power_norm",
    "random_parameter_mask",
    "reinit_norm_affine",
    "scaled_standardize_weight",
    "standardize_weight",
    "train_masked",
    "train_only",
    "weight_compand",
    "weight_compander_param_groups",
    "weight_stats",
]
