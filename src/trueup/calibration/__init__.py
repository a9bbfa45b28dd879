"""Measures of calibration, calibrators for trained models, and training losses that calibrate."""

from trueup.calibration._correctness_aware import (
    CorrectnessAwareCalibrator,
    correctness_aware_loss,
    view_features,
)
from trueup.calibration._temperature_scaling import TemperatureScaler, optimal_temperature

__all__ = [
    "CorrectnessAwareCalibrator",
    "TemperatureScaler",
    "correctness_aware_loss",
    "optimal_temperature",
    "view_features",
]
