"""Adaptation of a trained model to shifted test data: normalization layers, losses, streams, corruptions."""

from trueup.adaptation._corruptions import CORRUPTIONS, corrupt
from trueup.adaptation._streams import (
    continual_stream,
    dirichlet_order,
    iid_order,
    mixed_stream,
    sorted_order,
)

__all__ = [
    "CORRUPTIONS",
    "continual_stream",
    "corrupt",
    "dirichlet_order",
    "iid_order",
    "mixed_stream",
    "sorted_order",
from trueup.adaptation._alpha_batch_norm import (
    AlphaBatchNorm1d,
    AlphaBatchNorm2d,
    AlphaBatchNorm3d,
    alpha_batch_norm,
)
from trueup.adaptation._restore import (
    convert_alpha_bn,
    convert_test_batch_norm,
    convert_unmix_tns,
    restore,
)
from trueup.adaptation._unmix_tns import UnMixTNS1d, UnMixTNS2d, UnMixTNS3d, unmix_tns

__all__ = [
    "AlphaBatchNorm1d",
    "AlphaBatchNorm2d",
    "AlphaBatchNorm3d",
    "UnMixTNS1d",
    "UnMixTNS2d",
    "UnMixTNS3d",
    "alpha_batch_norm",
    "convert_alpha_bn",
    "convert_test_batch_norm",
    "convert_unmix_tns",
    "restore",
    "unmix_tns",
]
