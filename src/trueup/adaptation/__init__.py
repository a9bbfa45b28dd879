"""Adaptation of a trained model to shifted test data: normalization layers, losses, streams, corruptions."""

from trueup.adaptation._alpha_batch_norm import (
    AlphaBatchNorm1d,
    AlphaBatchNorm2d,
    AlphaBatchNorm3d,
    alpha_batch_norm,
)
from trueup.adaptation._core import (
    core,
    core_loss,
)
from trueup.adaptation._corruptions import (
    CORRUPTIONS,
    corrupt,
)
from trueup.adaptation._online_adapter import (
    OnlineAdapter,
)
from trueup.adaptation._restore import (
    convert_alpha_bn,
    convert_test_batch_norm,
    convert_unmix_tns,
    restore,
)
from trueup.adaptation._streams import (
    continual_stream,
    dirichlet_order,
    iid_order,
    mixed_stream,
    sorted_order,
)
from trueup.adaptation._tent import (
    entropy_loss,
    tent,
)
from trueup.adaptation._unmix_tns import (
    UnMixTNS1d,
    UnMixTNS2d,
    UnMixTNS3d,
    unmix_tns,
)

__all__ = [
    "CORRUPTIONS",
    "AlphaBatchNorm1d",
    "AlphaBatchNorm2d",
    "AlphaBatchNorm3d",
    "OnlineAdapter",
    "UnMixTNS1d",
    "UnMixTNS2d",
    "UnMixTNS3d",
    "alpha_batch_norm",
    "continual_stream",
    "convert_alpha_bn",
    "convert_test_batch_norm",
    "convert_unmix_tns",
    "core",
    "core_loss",
    "corrupt",
    "dirichlet_order",
    "entropy_loss",
    "iid_order",
    "mixed_stream",
    "restore",
    "sorted_order",
    "tent",
    "unmix_tns",
]
