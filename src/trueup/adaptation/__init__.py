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
]
