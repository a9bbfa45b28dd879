"""Measures of calibration, calibrators for trained models, and training losses that calibrate."""

from trueup.calibration._mixup import MixupLoss, mixup, mixup_batch
from trueup.calibration._overlapping_distributions import (
    OverlappingClusters,
    OverlappingGaussians,
    paired_label_noise,
)
from trueup.calibration._temperature_scaling import TemperatureScaler, optimal_temperature

__all__ = [
    "MixupLoss",
    "OverlappingClusters",
    "OverlappingGaussians",
    "TemperatureScaler",
    "mixup",
    "mixup_batch",
    "optimal_temperature",
    "paired_label_noise",
]
