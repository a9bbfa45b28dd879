"""Measures of calibration, calibrators for trained models, and training losses that calibrate."""

__all__: list[str] = []
