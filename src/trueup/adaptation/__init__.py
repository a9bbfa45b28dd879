"""Adaptation of a trained model to shifted test data: normalization layers, losses, streams, corruptions."""

from trueup.adaptation._corruptions import CORRUPTIONS, corrupt

__all__ = ["CORRUPTIONS", "corrupt"]
