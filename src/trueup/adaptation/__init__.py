"""Adaptation of a trained model to shifted test data: normalization layers, losses, streams, corruptions."""

__all__: list[str] = []
